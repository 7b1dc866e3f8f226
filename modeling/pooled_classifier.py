"""Classification of sequences from the mean of their tokens, the last one, or of every token by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..configuration.decoder import DecoderConfig
from .decoder import DecoderForSequenceClassification


class PooledForSequenceClassification(DecoderForSequenceClassification):
    """A causal trunk and a linear head with bias over what `config.pooling` says: "mean", "last" or "none".

    With "none" the logits are (b t num_labels) and so the labels are (b t), where -100 is left out.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def last_real(self, x: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """x (b t d) as the head reads it: (b d), or all of x."""
        if self.config.pooling == "none":
            return x
        if self.config.pooling == "last":
            return super().last_real(x, input_ids, attention_mask)
        if attention_mask is not None:
            real = attention_mask[:, -x.shape[1] :].bool()
        elif input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        else:
            return x.mean(1)
        wide = torch.promote_types(x.dtype, torch.float32)
        total = (x.to(wide) * real[..., None]).sum(1)
        return (total / real.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)
