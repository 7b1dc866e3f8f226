"""The second stage of VQGAN: Esser, Rombach and Ommer 2021 (arXiv:2012.09841), section 3.2.

p(s | c) = prod_t p(s_t | s_<t, c), s an image's codes in some order, c a condition: any causal language model reads
c and s as one sequence, and learns to predict s alone.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.vqgan_prior import NoriaVQGANPriorConfig
from .code_generation import CodeGeneration
from .image.conditions import check_ids
from .image.token_order import to_tokens
from .prefix_mask import unmask_prefix
from .vqgan import NoriaVQGANModel


@dataclass
class NoriaVQGANPriorOutput(ModelOutput):
    """loss: mean cross-entropy of the image's codes; logits (b n v): for each code, in the order of reading."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class NoriaVQGANPriorForImageGeneration(CodeGeneration):
    """`prior`, a causal language model over codes; `vqgan`, the first stage, if there is one, and `condition_vqgan`.

    The first stages are never trained here: their parameters take no gradient, and they stay in evaluation mode.
    """

    config: NoriaVQGANPriorConfig
    base_model_prefix = "prior"
    main_input_name = "codes"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # The output's loss is a mean over codes already.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: NoriaVQGANPriorConfig) -> None:
        super().__init__(config)
        self.prior = AutoModelForCausalLM.from_config(config.prior_config)
        if config.num_unmasked:
            unmask_prefix(self.prior, config.num_unmasked)
        stages = (config.vqgan_config, config.condition_vqgan_config)
        self.vqgan, self.condition_vqgan = (None if one is None else NoriaVQGANModel(one) for one in stages)
        self.post_init()
        self.train(self.training)

    def train(self, mode: bool = True) -> "NoriaVQGANPriorForImageGeneration":
        super().train(mode)  # from_pretrained comes by here too, with parameters that take a gradient
        for stage in (self.vqgan, self.condition_vqgan):
            if stage is not None:
                stage.requires_grad_(False).eval()
        return self

    @property
    def first_stage(self) -> NoriaVQGANModel | None:
        return self.vqgan

    @property
    def condition_stage(self) -> NoriaVQGANModel | None:
        return self.vqgan if self.condition_vqgan is None else self.condition_vqgan

    def get_input_embeddings(self) -> nn.Module:
        return self.prior.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.prior.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.prior.get_output_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        codes: Tensor | None = None,
        condition: Any = None,
        labels: Tensor | None = None,
        return_loss: bool = True,
    ) -> NoriaVQGANPriorOutput:
        """pixel_values (b c h w) in [-1, 1], or codes (b h w), and their condition -> logits (b n v) and the loss.

        condition: as in `generate_codes`. labels (b h w): what is to be predicted where it is not the codes; -100 is
        left out. Raises ValueError for input that does not fit the model or the rest of the input.
        """
        codes = self.read_codes(pixel_values, codes)
        size = (codes.shape[1], codes.shape[2])
        order = self.find_order(size)
        tokens = to_tokens(codes, order)
        ids = self.condition_tokens(condition, codes.shape[0], size).flatten(1)
        self.check_length(ids.shape[1] + tokens.shape[1] - 1)
        logits = self.code_logits(torch.cat([ids, self.corrupt(tokens)], dim=1)[:, :-1], tokens.shape[1])
        loss = None
        if return_loss:
            targets = tokens if labels is None else to_tokens(self.as_map(labels), order)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(wide.flatten(0, 1), targets.flatten())
        return NoriaVQGANPriorOutput(loss=loss, logits=logits)

    def code_logits(self, ids: Tensor, count: int) -> Tensor:
        """The prior's logits (b count v) for what follows each of its last `count` tokens."""
        keep = (
            {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(self.prior.forward).parameters else {}
        )
        return self.prior(input_ids=ids, use_cache=False, **keep).logits[:, -count:]

    def corrupt(self, tokens: Tensor) -> Tensor:
        """While training, each code stays with `keep_probability`; else it is replaced by any code."""
        keep = self.config.keep_probability
        if not self.training or keep >= 1:
            return tokens
        stays = torch.rand(tokens.shape, device=tokens.device) < keep
        return torch.where(stays, tokens, torch.randint_like(tokens, self.config.vocab_size))

    def read_codes(self, pixel_values: Tensor | None, codes: Tensor | None) -> Tensor:
        if (pixel_values is None) == (codes is None):
            raise ValueError("give exactly one of `pixel_values` and `codes`.")
        if codes is None:
            return self.encode(pixel_values)
        codes = self.as_map(codes)
        check_ids(codes, self.config.vocab_size, "codes")
        return codes

    def as_map(self, codes: Tensor) -> Tensor:
        """Codes (b h w), or (b n) row by row on the trained grid -> (b h w) int64 on the model's device."""
        codes = torch.as_tensor(codes, device=self.device)
        if codes.dim() == 2 and codes.shape[1] == self.config.num_tokens:
            codes = codes.unflatten(1, self.config.grid_size)
        if codes.dim() != 3 or codes.is_floating_point():
            shape = tuple(codes.shape)
            raise ValueError(f"codes are integers of shape (batch, height, width), not {codes.dtype} of {shape}.")
        return codes.long()


__all__ = ["NoriaVQGANPriorForImageGeneration", "NoriaVQGANPriorOutput"]
