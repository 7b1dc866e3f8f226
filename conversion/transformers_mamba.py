"""Mamba of transformers itself  ->  NoriaMamba with the same head."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from ..configuration.mamba import NoriaMambaConfig
from ..modeling.mamba import NoriaMambaForCausalLM, NoriaMambaModel
from .checkpoint import Checkpoint
from .format import Format, Plan, layer_count
from .mamba_rules import MAMBA, sizes
from .roformer_torch import ACTIVATIONS, COMPANIONS, PATTERNS
from .rules import Rule, same_bytes
from .settings import Settings
from .tokenizer_files import copy_tokenizer

EMBEDDING, HEAD = "embeddings.weight", "lm_head.weight"
ARGUMENTS = frozenset(
    [
        "vocab_size",
        "hidden_size",
        "state_size",
        "num_hidden_layers",
        "layer_norm_epsilon",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "expand",
        "intermediate_size",
        "conv_kernel",
        "use_bias",
        "use_conv_bias",
        "hidden_act",
        "initializer_range",
        "residual_in_fp32",
        "time_step_rank",
        "time_step_scale",
        "time_step_min",
        "time_step_max",
        "time_step_init_scheme",
        "time_step_floor",
        "rescale_prenorm_residual",
        "use_cache",
        "use_mambapy",
        "use_associative_scan",
        "tie_word_embeddings",
        "architectures",
        "model_type",
    ]
)


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    if "NoriaMambaModel" in (config.architectures or ()):
        return (Rule(EMBEDDING, "embed_tokens.weight"), *MAMBA.rules)
    body = [Rule(f"backbone.{r.source}", f"model.{r.target}", r.transform, r.inverse) for r in MAMBA.rules]
    head = Rule(HEAD, HEAD)
    if config.tie_word_embeddings:
        head = Rule(HEAD, reason="tied to the embedding", copy_of=f"backbone.{EMBEDDING}")
    return (Rule(f"backbone.{EMBEDDING}", "model.embed_tokens.weight"), *body, head)


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in checkpoint.state.items()}
    embedding = tensors.get(EMBEDDING, tensors.get(HEAD))
    if embedding is None or f"layers.0.{MAMBA.anchor}" not in tensors:
        names = ", ".join(list(tensors)[:4])
        raise ValueError(
            f"it is not a Mamba of transformers: {EMBEDDING} or layers.0.{MAMBA.anchor} is not in {names}"
        )
    settings = Settings(arguments, checkpoint.read_json("config.json"))
    bare = not any(name.startswith("backbone.") for name in checkpoint.state)
    tied = HEAD not in tensors or EMBEDDING not in tensors or same_bytes(tensors[HEAD], tensors[EMBEDDING])
    config = {
        "vocab_size": settings.take("vocab_size", embedding.shape[0]),
        "hidden_size": settings.take("hidden_size", embedding.shape[1]),
        "num_hidden_layers": settings.take("num_hidden_layers", layer_count(tensors, "layers.")),
        "tie_word_embeddings": settings.take("tie_word_embeddings", None if bare or tied else False, default=True),
        **layer_fields(settings, sizes(tensors)),
        **{name: settings.stated(name)[0] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    }
    settings.finish()
    model_class = NoriaMambaModel if bare else NoriaMambaForCausalLM
    noria = NoriaMambaConfig(**{**config, **fields}, architectures=[model_class.__name__])
    return Plan(noria, model_class, settings=settings.record, write_tokenizer=copy_tokenizer(checkpoint))


def layer_fields(settings: Settings, found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a layer; transformers' names are those of NoriaMambaConfig but for a few."""
    if settings.stated("time_step_rank")[0] != "auto":
        settings.take("time_step_rank", found["dt_rank"])
    initial = {"time_step_min": 0.001, "time_step_max": 0.1, "time_step_floor": 1e-4, "initializer_range": 0.1}
    return {
        "inner_size": settings.take("intermediate_size", found["inner"]),
        "expand": settings.take("expand", default=2),
        "state_size": settings.take("state_size", found["d_state"]),
        "conv_kernel": settings.take("conv_kernel", found["d_conv"]),
        "time_step_rank": found["dt_rank"],
        "use_bias": settings.take("use_bias", found["bias"]),
        "use_conv_bias": settings.take("use_conv_bias", found["conv_bias"]),
        "hidden_act": settings.choose("hidden_act", ACTIVATIONS, "silu"),
        "norm_eps": settings.take("layer_norm_epsilon", default=1e-5),
        "residual_in_fp32": settings.take("residual_in_fp32", default=True),
        "rescale_prenorm_residual": settings.take("rescale_prenorm_residual", default=False),
        **{name: settings.take(name, default=value) for name, value in initial.items()},
    }


MAMBA_FOLDER = Format(
    name="transformers",
    upstream="transformers' MambaConfig",
    arguments=ARGUMENTS,
    config_classes=(NoriaMambaConfig,),
    plan=plan,
    rules=rules,
    patterns=PATTERNS,
    companions=COMPANIONS,
)
