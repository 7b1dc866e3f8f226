"""The shapes of a residual block. None knows which mixer it holds, and none remembers anything.

MixerBlock     x + mixer(norm(x))
PreNormBlock   x + mixer(norm(x)),  then x + mlp(norm(x))
PostNormBlock  norm(x + mixer(x)),  then norm(x + mlp(x))
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .feedforward import GatedMLP
from .state import Context, State


class MixerBlock(GradientCheckpointingLayer):
    """x (b t d), context, state -> x (b t d), state. A subclass names its mixer; `layer` is the block's number."""

    mixer_class: type[nn.Module]
    mixer: Any
    norm_class: type[nn.Module] = nn.RMSNorm

    def __init__(self, config, layer: int) -> None:
        super().__init__()
        self.mixer_norm = self.make_norm(config)
        self.mixer = self.make_mixer(config, layer)
        self.dropout = nn.Dropout(config.dropout)

    def make_mixer(self, config, layer: int) -> nn.Module:
        return self.mixer_class(config)

    def make_norm(self, config) -> nn.Module:
        return self.norm_class(config.hidden_size, eps=config.norm_eps)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        """The state before any token, for `batch` rows of a model whose weights are of `dtype`."""
        return self.mixer.initial_state(batch, dtype, device)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream x with a branch's output y added."""
        return x + self.dropout(y)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        y, state = self.mixer(self.mixer_norm(x), context, state)
        return self.residual(x, y), state


class PreNormBlock(MixerBlock):
    mlp_class: type[nn.Module] = GatedMLP

    def __init__(self, config, layer: int) -> None:
        super().__init__(config, layer)
        self.mlp_norm = self.make_norm(config)
        self.mlp = self.make_mlp(config)

    def make_mlp(self, config) -> nn.Module:
        return self.mlp_class(config)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        y, state = self.mixer(self.mixer_norm(x), context, state)
        x = self.residual(x, y)
        return self.residual(x, self.mlp(self.mlp_norm(x))), state


class PostNormBlock(PreNormBlock):
    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        y, state = self.mixer(x, context, state)
        x = self.mixer_norm(self.residual(x, y))
        return self.mlp_norm(self.residual(x, self.mlp(x))), state
