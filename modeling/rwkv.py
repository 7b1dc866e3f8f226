"""RWKV, versions 4 to 7: Peng et al. (arXiv:2305.13048, arXiv:2404.05892, arXiv:2503.14456).

A block is a time mix and a channel mix, both of which keep state. Contracts, with `layer` the block's number:

    time mix      TimeMix(config, layer):     y, state = mix(x, context, state), any number of tensors
    channel mix   ChannelMix(config, layer):  y, state = mix(x, context, state), one tensor: the last token (b d)

Version 7's time mix also takes and returns the values (b t a) of the first layer: `mix(x, context, state, first)`,
with None for `first` in the first layer, gives `y, state, first`. From block to block they travel beside the residual
stream, so that checkpointing, replay and export treat them as they treat the stream.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin

from ..configuration.rwkv import NoriaRWKVConfig
from .backbone import Backbone
from .block import MixerBlock
from .decoder import DecoderForCausalLM, DecoderForSequenceClassification
from .mixers.channel_mix import SquaredReluChannelMix
from .mixers.channel_mix67 import ChannelMix6, ChannelMix7
from .mixers.rwkv4 import TimeMix4
from .mixers.rwkv5 import TimeMix5
from .mixers.rwkv6 import TimeMix6
from .mixers.rwkv7 import TimeMix7
from .state import Context, State


class Stream(nn.Module):
    """What entered a block and what leaves it, (b t d) both -> the latter: where hidden states are recorded."""

    def forward(self, entered: Tensor, left: Tensor) -> Tensor:
        return left


class RWKVBlock(MixerBlock):
    """x + time_mix(norm(x)), then x + channel_mix(norm(x)). State: the time mix's, then the channel mix's."""

    norm_class = nn.LayerNorm
    mlp: Any

    def __init__(self, config: NoriaRWKVConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.mlp_norm = self.make_norm(config)
        self.mlp = VERSIONS[config.version].channel_mix(config, layer)
        self.stream = Stream()
        halvings = count_halvings(config, layer)
        self.mixer_norm.eps = self.mlp_norm.eps = config.norm_eps / 4**halvings
        self.halves = count_halvings(config, layer + 1) > halvings

    def make_mixer(self, config: NoriaRWKVConfig, layer: int) -> nn.Module:
        return VERSIONS[config.version].time_mix(config, layer)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        parts = (self.mixer, self.mlp)
        return sum((part.initial_state(batch, dtype, device) for part in parts), ())

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        before, seen = split_state(state)
        y, before = self.mixer(self.mixer_norm(x), context, before)
        middle = self.residual(x, y)
        y, seen = self.mlp(self.mlp_norm(middle), context, seen)
        return self.stream(x, self.halve(self.residual(middle, y))), (*before, *seen)

    def halve(self, x: Tensor) -> Tensor:
        """The stream as the next block wants it."""
        return x / 2 if self.halves else x


class RWKV7Block(RWKVBlock):
    """As RWKVBlock, with the first layer's values beside the stream: x (b t d) into the first block and out of the
    last, (b t d+a) between blocks."""

    def __init__(self, config: NoriaRWKVConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.width, self.first, self.last = config.hidden_size, layer == 0, layer == config.num_hidden_layers - 1

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        before, seen = split_state(state)
        x, first = x[..., : self.width], None if self.first else x[..., self.width :]
        y, before, first = self.mixer(self.mixer_norm(x), context, before, first)
        middle = self.residual(x, y)
        y, seen = self.mlp(self.mlp_norm(middle), context, seen)
        x = self.stream(x, self.halve(self.residual(middle, y)))
        return x if self.last else torch.cat([x, first], -1), (*before, *seen)


def count_halvings(config: NoriaRWKVConfig, layer: int) -> int:
    """How often the stream has been halved before block `layer`. An epsilon of 4^-n keeps the norms what they are."""
    return layer // config.rescale_every if config.rescale_every else 0


def split_state(state: State) -> tuple[State, State]:
    """The states of the time mix and of the channel mix, whose one tensor is the last."""
    return (None, None) if state is None else (state[:-1], state[-1:])


class Version(NamedTuple):
    """What one version of RWKV is made of."""

    time_mix: type[nn.Module]
    channel_mix: type[nn.Module]
    block: type[RWKVBlock] = RWKVBlock


VERSIONS = {
    4: Version(TimeMix4, SquaredReluChannelMix),
    5: Version(TimeMix5, SquaredReluChannelMix),
    6: Version(TimeMix6, ChannelMix6),
    7: Version(TimeMix7, ChannelMix7, RWKV7Block),
}


class EmbeddingLayerNorm(nn.LayerNorm):
    """A layer norm in another precision than the model's, perhaps; transformers initialises it by its name."""

    def __init__(self, config: NoriaRWKVConfig) -> None:
        super().__init__(config.hidden_size, eps=config.norm_eps)
        self.dtype = None if config.embedding_norm_dtype is None else getattr(torch, config.embedding_norm_dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.dtype is None:
            return super().forward(x)
        weight, bias = self.weight.to(self.dtype), self.bias.to(self.dtype)
        return F.layer_norm(x.to(self.dtype), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class NoriaRWKVModel(Backbone):
    config: NoriaRWKVConfig
    _no_split_modules = ["RWKVBlock", "RWKV7Block"]
    _can_record_outputs = {"hidden_states": Stream}  # between blocks of version 7 other values travel along
    _keep_in_fp32_modules_strict = ["time_decay", "time_first"]

    def make_embeddings(self, config: NoriaRWKVConfig) -> None:
        super().make_embeddings(config)
        self.embedding_norm = EmbeddingLayerNorm(config)

    def make_block(self, layer: int) -> MixerBlock:
        return VERSIONS[self.config.version].block(self.config, layer)

    def make_norm(self, config: NoriaRWKVConfig) -> nn.Module:
        eps = config.norm_eps / 4 ** count_halvings(config, config.num_hidden_layers)
        return nn.LayerNorm(config.hidden_size, eps=eps)

    def embed(self, x: Tensor, context: Context, **kwargs) -> Tensor:
        return self.embedding_norm(x)


class NoriaRWKVForCausalLM(DecoderForCausalLM, GenerationMixin):
    config: NoriaRWKVConfig
    model_class = NoriaRWKVModel


class NoriaRWKVForSequenceClassification(DecoderForSequenceClassification):
    config: NoriaRWKVConfig
    model_class = NoriaRWKVModel


__all__ = ["NoriaRWKVForCausalLM", "NoriaRWKVForSequenceClassification", "NoriaRWKVModel"]
