"""What transformers' folders of Mamba and Mamba-2 have in common: the trunk `backbone.`, a head, a layer's table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from .checkpoint import Checkpoint
from .format import Plan, layer_count
from .mamba_layer import Layer
from .rules import Rule, same_bytes
from .settings import Settings
from .tokenizer_files import copy_tokenizer

EMBEDDING, HEAD, TRUNK = "embeddings.weight", "lm_head.weight", "backbone."
# Arguments of both upstream configurations.
ARGUMENTS = (
    "vocab_size",
    "hidden_size",
    "state_size",
    "num_hidden_layers",
    "layer_norm_epsilon",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "expand",
    "conv_kernel",
    "use_bias",
    "use_conv_bias",
    "hidden_act",
    "initializer_range",
    "residual_in_fp32",
    "time_step_rank",
    "time_step_min",
    "time_step_max",
    "time_step_floor",
    "rescale_prenorm_residual",
    "use_cache",
    "tie_word_embeddings",
    "architectures",
    "model_type",
)


def rules_of(layer: Layer, config: PreTrainedConfig) -> Sequence[Rule]:
    """The table of a language model with such layers, or of its trunk alone, which has no prefix."""
    if layer.model_class.model_class.__name__ in (config.architectures or ()):
        return (Rule(EMBEDDING, "embed_tokens.weight"), *layer.rules)
    body = [Rule(f"{TRUNK}{r.source}", f"model.{r.target}", r.transform, r.inverse) for r in layer.rules]
    head = Rule(HEAD, HEAD)
    if config.tie_word_embeddings:
        head = Rule(HEAD, reason="tied to the embedding", copy_of=f"{TRUNK}{EMBEDDING}")
    return (Rule(f"{TRUNK}{EMBEDDING}", "model.embed_tokens.weight"), *body, head)


def plan_of(
    layer: Layer,
    upstream: str,
    layer_fields: Callable[[Settings, Mapping[str, Tensor]], dict[str, Any]],
    tied: bool,
    checkpoint: Checkpoint,
    arguments: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> Plan:
    """The plan of a checkpoint of `upstream`; `tied` is what its configuration says of the head by default."""
    tensors = {name.removeprefix(TRUNK): tensor for name, tensor in checkpoint.state.items()}
    embedding = tensors.get(EMBEDDING, tensors.get(HEAD))
    if embedding is None or f"layers.0.{layer.anchor}" not in tensors:
        names = ", ".join(list(tensors)[:4])
        raise ValueError(f"it is not a {upstream}: {EMBEDDING} or layers.0.{layer.anchor} is not in {names}")
    settings = Settings(arguments, checkpoint.read_json("config.json"))
    bare = not any(name.startswith(TRUNK) for name in checkpoint.state)
    config = {
        "vocab_size": settings.take("vocab_size", embedding.shape[0]),
        "hidden_size": settings.take("hidden_size", embedding.shape[1]),
        "num_hidden_layers": settings.take("num_hidden_layers", layer_count(tensors, "layers.")),
        "tie_word_embeddings": tying(settings, tensors, bare, tied),
        **layer_fields(settings, tensors),
        **{name: settings.stated(name)[0] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    }
    settings.finish()
    model_class = layer.model_class.model_class if bare else layer.model_class
    noria = layer.config_class(**{**config, **fields}, architectures=[model_class.__name__])
    return Plan(noria, model_class, settings=settings.record, write_tokenizer=copy_tokenizer(checkpoint))


def tying(settings: Settings, tensors: Mapping[str, Tensor], bare: bool, default: bool) -> bool:
    """Whether the head is the embedding: where the file has one of the two alone it must be."""
    if bare:
        return settings.take("tie_word_embeddings", default=default)
    if HEAD not in tensors or EMBEDDING not in tensors:
        return settings.take("tie_word_embeddings", True)
    same = same_bytes(tensors[HEAD], tensors[EMBEDDING])
    return settings.take("tie_word_embeddings", None if same else False, default=default)


def common_fields(settings: Settings, found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a layer that both upstream configurations have under the same names."""
    return {
        "expand": settings.take("expand", default=2),
        "use_bias": settings.take("use_bias", found["bias"]),
        "use_conv_bias": settings.take("use_conv_bias", found["conv_bias"]),
        "norm_eps": settings.take("layer_norm_epsilon", default=1e-5),
        "residual_in_fp32": settings.take("residual_in_fp32", default=True),
        "rescale_prenorm_residual": settings.take("rescale_prenorm_residual", default=False),
        "time_step_min": settings.take("time_step_min", default=0.001),
        "time_step_max": settings.take("time_step_max", default=0.1),
        "time_step_floor": settings.take("time_step_floor", default=1e-4),
        "initializer_range": settings.take("initializer_range", default=0.1),
    }
