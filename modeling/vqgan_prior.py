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
from transformers.utils.generic import ModelOutput, can_return_tuple

from ..configuration.vqgan_prior import NoriaVQGANPriorConfig
from .code_generation import CodeGeneration
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
    input_modalities = "image"
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
        stages: Any = (config.vqgan_config, config.condition_vqgan_config)
        self.vqgan, self.condition_vqgan = (None if stage is None else NoriaVQGANModel(stage) for stage in stages)
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
        targets: Tensor | None = None,
        return_loss: bool = True,
    ) -> NoriaVQGANPriorOutput:
        """pixel_values (b c h w) in [-1, 1], or codes (b h w), and their condition -> logits (b n v) and the loss.

        condition: as in `generate_codes`. targets (b h w): what is to be predicted where it is not the codes; -100 is
        left out. Raises ValueError for input that does not fit the model or the rest of the input.
        """
        config: Any = self.config
        codes = self.read_codes(pixel_values, codes)
        size = (codes.shape[1], codes.shape[2])
        order = self.find_order(size)
        tokens = to_tokens(codes, order)
        ids = self.condition_tokens(condition, codes.shape[0], size).flatten(1)
        self.check_length(ids.shape[1] + tokens.shape[1] - 1)
        read = tokens
        if self.training and config.keep_probability < 1:
            read = corrupted(tokens, config.keep_probability, config.vocab_size)
        logits = self.code_logits(torch.cat([ids, read], dim=1)[:, :-1], tokens.shape[1])
        loss = None
        if return_loss:
            wanted = tokens if targets is None else to_tokens(self.as_map(targets), order)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(wide.flatten(0, 1), wanted.flatten())
        return NoriaVQGANPriorOutput(loss=loss, logits=logits)

    def code_logits(self, ids: Tensor, count: int) -> Tensor:
        """The prior's logits (b count v) for what follows each of its last `count` tokens."""
        chooses = "logits_to_keep" in inspect.signature(self.prior.forward).parameters
        keep = {"logits_to_keep": count} if chooses else {}
        return self.prior(input_ids=ids, use_cache=False, **keep).logits[:, -count:]


def corrupted(tokens: Tensor, keep: float, count: int) -> Tensor:
    """Each token stays with probability `keep`; else it is replaced by any of `count`."""
    stays = torch.rand(tokens.shape, device=tokens.device) < keep
    return torch.where(stays, tokens, torch.randint_like(tokens, count))


__all__ = ["NoriaVQGANPriorForImageGeneration", "NoriaVQGANPriorOutput"]
