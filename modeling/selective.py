"""The trunk that Mamba (arXiv:2312.00752) and Mamba-2 (arXiv:2405.21060) share: only their layers differ."""

import torch
from torch import Tensor, nn

from ..configuration.selective import SelectiveConfig
from .backbone import Backbone
from .block import MixerBlock
from .state import Context
from .wide_norm import WIDE_NORMS


def make_wide_norm(config: SelectiveConfig) -> nn.Module:
    return WIDE_NORMS[config.norm](config.hidden_size, eps=config.norm_eps)


class SelectiveBlock(MixerBlock):
    """x + mixer(norm(x)) on a stream that may be wider than the weights."""

    def make_norm(self, config: SelectiveConfig) -> nn.Module:
        return make_wide_norm(config)


class SelectiveBackbone(Backbone):
    """A residual stream in float32, as published, where `residual_in_fp32` says so."""

    config: SelectiveConfig
    _keep_in_fp32_modules_strict = ["mixer.A_log", "mixer.D", "mixer.dt_bias"]

    def make_norm(self, config: SelectiveConfig) -> nn.Module:
        return make_wide_norm(config)

    def embed(self, x: Tensor, context: Context, **kwargs) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.config.residual_in_fp32 else x
