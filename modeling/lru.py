"""LRU: Orvieto et al. 2023, Resurrecting Recurrent Neural Networks for Long Sequences (arXiv:2303.06349)."""

from torch import Tensor, nn
from transformers import GenerationMixin

from ..configuration.lru import NoriaLRUConfig
from .activation import activation
from .backbone import Backbone
from .batch_norm import TokenBatchNorm
from .block import MixerBlock
from .decoder import DecoderForCausalLM
from .mixers.lru import LRU
from .pooled_classifier import PooledForSequenceClassification
from .state import Context, State


def make_norm(config: NoriaLRUConfig) -> nn.Module:
    if config.norm == "batch_norm":
        return TokenBatchNorm(config.hidden_size, config.norm_eps, config.norm_momentum)
    return {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}[config.norm](config.hidden_size, eps=config.norm_eps)


class GatedOutput(nn.Module):
    """W_v act(x) * sigmoid(W_g act(x)), with biases; x (b t d) -> (b t d)."""

    def __init__(self, config: NoriaLRUConfig) -> None:
        super().__init__()
        self.act, self.dropout = activation(config.hidden_act), nn.Dropout(config.dropout)
        self.value_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.gate_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.act(x))
        return self.value_proj(x) * self.gate_proj(x).sigmoid()


class LRUBlock(MixerBlock):
    """x + glu(lru(norm(x))), or norm(x + glu(lru(x))) without `prenorm`."""

    mixer_class = LRU

    def __init__(self, config: NoriaLRUConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.prenorm = config.prenorm
        self.glu = GatedOutput(config)

    def make_norm(self, config: NoriaLRUConfig) -> nn.Module:
        return make_norm(config)

    def normed(self, x: Tensor, context: Context) -> Tensor:
        if isinstance(self.mixer_norm, TokenBatchNorm):
            return self.mixer_norm(x, context.mask)
        return self.mixer_norm(x)

    def forward(self, x: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        y, state = self.mixer(self.normed(x, context) if self.prenorm else x, context, state)
        x = self.residual(x, self.glu(y))
        return x if self.prenorm else self.normed(x, context), state


class NoriaLRUModel(Backbone):
    config: NoriaLRUConfig
    block_class = LRUBlock
    _no_split_modules = ["LRUBlock"]
    _keep_in_fp32_modules_strict = ["mixer.nu_log", "mixer.theta_log", "mixer.gamma_log", "mixer.D"]

    def make_embeddings(self, config: NoriaLRUConfig) -> None:
        super().make_embeddings(config)
        self.input_proj = nn.Linear(config.input_size, config.hidden_size) if config.input_size else None

    def make_norm(self, config: NoriaLRUConfig) -> nn.Module:
        # A last batch norm would have to be told of padding: a layer norm stands there.
        width, eps = config.hidden_size, config.norm_eps
        if not config.final_norm:
            return nn.Identity()
        return nn.LayerNorm(width, eps=eps) if config.norm == "batch_norm" else make_norm(config)

    def embed(self, x: Tensor, context: Context, **kwargs) -> Tensor:
        return x if self.input_proj is None else self.input_proj(x)


class NoriaLRUForCausalLM(DecoderForCausalLM, GenerationMixin):
    config: NoriaLRUConfig
    model_class = NoriaLRUModel


class NoriaLRUForSequenceClassification(PooledForSequenceClassification):
    """Its head has a bias, as minimal-LRU's decoder."""

    config: NoriaLRUConfig
    model_class = NoriaLRUModel

    def __init__(self, config: NoriaLRUConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()


__all__ = ["NoriaLRUForCausalLM", "NoriaLRUForSequenceClassification", "NoriaLRUModel"]
