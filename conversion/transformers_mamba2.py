"""Mamba-2 of transformers itself  ->  NoriaMamba2 with the same head.

Defaults are those of transformers' Mamba2Config, which are Codestral's and not those of the authors' models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from ..configuration.mamba2 import NoriaMamba2Config
from ..modeling.mamba2 import NoriaMamba2ForCausalLM, NoriaMamba2Model
from .checkpoint import Checkpoint
from .format import Format, Plan, layer_count
from .mamba2_rules import MAMBA2, limit, share_out, sizes
from .roformer_torch import ACTIVATIONS, COMPANIONS, PATTERNS
from .rules import Rule, same_bytes
from .settings import Settings
from .tokenizer_files import copy_tokenizer

EMBEDDING, HEAD = "embeddings.weight", "lm_head.weight"
ARGUMENTS = frozenset(
    [
        "num_heads",
        "head_dim",
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
        "n_groups",
        "use_bias",
        "use_conv_bias",
        "hidden_act",
        "initializer_range",
        "residual_in_fp32",
        "time_step_rank",
        "time_step_min",
        "time_step_max",
        "time_step_floor",
        "time_step_limit",
        "rescale_prenorm_residual",
        "use_cache",
        "chunk_size",
        "tie_word_embeddings",
        "architectures",
        "model_type",
    ]
)


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    if "NoriaMamba2Model" in (config.architectures or ()):
        return (Rule(EMBEDDING, "embed_tokens.weight"), *MAMBA2.rules)
    body = [Rule(f"backbone.{r.source}", f"model.{r.target}", r.transform, r.inverse) for r in MAMBA2.rules]
    head = Rule(HEAD, HEAD)
    if config.tie_word_embeddings:
        head = Rule(HEAD, reason="tied to the embedding", copy_of=f"backbone.{EMBEDDING}")
    return (Rule(f"backbone.{EMBEDDING}", "model.embed_tokens.weight"), *body, head)


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in checkpoint.state.items()}
    embedding = tensors.get(EMBEDDING, tensors.get(HEAD))
    if embedding is None or f"layers.0.{MAMBA2.anchor}" not in tensors:
        names = ", ".join(list(tensors)[:4])
        raise ValueError(
            f"it is not a Mamba-2 of transformers: {EMBEDDING} or layers.0.{MAMBA2.anchor} is not in {names}"
        )
    settings = Settings(arguments, checkpoint.read_json("config.json"))
    bare = not any(name.startswith("backbone.") for name in checkpoint.state)
    config = {
        "vocab_size": settings.take("vocab_size", embedding.shape[0]),
        "hidden_size": settings.take("hidden_size", embedding.shape[1]),
        "num_hidden_layers": settings.take("num_hidden_layers", layer_count(tensors, "layers.")),
        "tie_word_embeddings": tying(settings, tensors, bare),
        **layer_fields(settings, sizes(tensors)),
        **{name: settings.stated(name)[0] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    }
    settings.finish()
    model_class = NoriaMamba2Model if bare else NoriaMamba2ForCausalLM
    noria = NoriaMamba2Config(**{**config, **fields}, architectures=[model_class.__name__])
    return Plan(noria, model_class, settings=settings.record, write_tokenizer=copy_tokenizer(checkpoint))


def tying(settings: Settings, tensors: Mapping[str, Tensor], bare: bool) -> bool:
    """Whether the head is the embedding: where the file has one of the two alone it must be."""
    if bare:
        return settings.take("tie_word_embeddings", default=False)
    if HEAD not in tensors or EMBEDDING not in tensors:
        return settings.take("tie_word_embeddings", True)
    same = same_bytes(tensors[HEAD], tensors[EMBEDDING])
    return settings.take("tie_word_embeddings", None if same else False, default=False)


def layer_fields(settings: Settings, found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a layer."""
    state, groups = share_out(settings, found["shared"], "state_size", "n_groups", (128, 8))
    if found["scanned"] != found["inner"] or found["skip_per_channel"]:
        settings.wrong.append("its layers have channels beside the recurrence or a skip for each, as no Mamba2Config")
    initial = {"time_step_min": 0.001, "time_step_max": 0.1, "time_step_floor": 1e-4, "initializer_range": 0.1}
    return {
        "inner_size": found["inner"],
        "scan_size": found["scanned"],
        "expand": settings.take("expand", default=2),
        "num_attention_heads": settings.take("num_heads", found["heads"]),
        "head_dim": settings.take("head_dim", found["head_dim"]),
        "state_size": state,
        "num_groups": groups,
        "conv_kernel": settings.take("conv_kernel", found["kernel"]),
        "use_bias": settings.take("use_bias", found["bias"]),
        "use_conv_bias": settings.take("use_conv_bias", found["conv_bias"]),
        "hidden_act": settings.choose("hidden_act", ACTIVATIONS, "silu"),
        "norm_eps": settings.take("layer_norm_epsilon", default=1e-5),
        "time_step_limit": limit(settings, "time_step_limit"),
        "residual_in_fp32": settings.take("residual_in_fp32", default=True),
        "rescale_prenorm_residual": settings.take("rescale_prenorm_residual", default=False),
        **{name: settings.take(name, default=value) for name, value in initial.items()},
    }


MAMBA2_FOLDER = Format(
    name="transformers",
    upstream="transformers' Mamba2Config",
    arguments=ARGUMENTS,
    config_classes=(NoriaMamba2Config,),
    plan=plan,
    rules=rules,
    patterns=PATTERNS,
    companions=COMPANIONS,
)
