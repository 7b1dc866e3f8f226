"""Classification of sequences from the mean of their tokens, the last one, or of every token by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from .decoder import DecoderForSequenceClassification
from .layout import real_tokens


class PooledForSequenceClassification(DecoderForSequenceClassification):
    """A causal trunk and a linear head over what `config.pooling` says: "mean", "last" or "none".

    With "none" the logits are (b t num_labels) and so the labels are (b t), where -100 is left out.
    """

    def last_real(self, x: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """x (b t d) as the head reads it: (b d), or all of x."""
        if self.config.pooling == "none":
            return x
        if self.config.pooling == "last":
            return super().last_real(x, input_ids, attention_mask)
        real = real_tokens(x, input_ids, attention_mask, self.config.pad_token_id)
        if real is None:
            return x.mean(1)
        wide = torch.promote_types(x.dtype, torch.float32)
        total = (x.to(wide) * real[..., None]).sum(1)
        return (total / real.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)
