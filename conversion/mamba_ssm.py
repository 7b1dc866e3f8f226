"""state-spaces/mamba, MambaLMHeadModel  ->  the causal language model of the same layer.

Read from folders with config.json and pytorch_model.bin, as the authors publish them, and from bare state dicts, whose
tensors say all but the dropped options. The rows by which the vocabulary was padded are kept. `ssm_cfg.layer` tells
the layer where it is stated; the tensors have the last word.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from .checkpoint import Checkpoint
from .format import Format, Plan, layer_count
from .mamba2_rules import MAMBA2
from .mamba_layer import Layer
from .mamba_rules import MAMBA
from .rules import Rule, same_bytes
from .settings import Settings

CONFIG = "config.json"
LAYERS: dict[str, Layer] = {"Mamba1": MAMBA, "Mamba2": MAMBA2}
EMBEDDING, HEAD = "backbone.embedding.weight", "lm_head.weight"
MATHEMATICAL = [
    "d_model",
    "d_intermediate",
    "n_layer",
    "vocab_size",
    "ssm_cfg",
    "attn_layer_idx",
    "attn_cfg",
    "rms_norm",
    "residual_in_fp32",
    "pad_vocab_size_multiple",
    "tie_embeddings",
]
INDIFFERENT = ["fused_add_norm"]


def layer_of(tensors: Mapping[str, Tensor]) -> Layer:
    """The kind of layer that the tensors have; ValueError where it is none of those known."""
    for layer in LAYERS.values():
        if f"backbone.layers.0.{layer.anchor}" in tensors:
            return layer
    names = ", ".join(list(tensors)[:4])
    raise ValueError(f"it is no language model of mamba_ssm with layers {', '.join(LAYERS)}: it begins with {names}")


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    layer = next(layer for layer in LAYERS.values() if isinstance(config, layer.config_class))
    head = Rule(HEAD, HEAD)
    if config.tie_word_embeddings:
        head = Rule(HEAD, reason="tied to the embedding", copy_of=EMBEDDING)
    body = [Rule(f"backbone.{r.source}", f"model.{r.target}", r.transform, r.inverse) for r in layer.rules]
    return (Rule(EMBEDDING, "model.embed_tokens.weight"), *body, head)


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    tensors, stated = checkpoint.state, checkpoint.read_json(CONFIG)
    layer = layer_of(tensors)
    settings = Settings(arguments, stated)
    config = language_model(settings, tensors)
    options = Settings(arguments.get("ssm_cfg") or {}, stated.get("ssm_cfg") or {})
    unknown = [name for name in {**options.from_file, **options.given} if name not in (*layer.arguments, "layer")]
    if unknown:
        settings.wrong.append(f"ssm_cfg has {', '.join(sorted(unknown))}, which {layer.name} does not take")
    if options.take("layer", default=layer.name) != layer.name:
        settings.wrong.append(
            f"ssm_cfg.layer is {options.record['layer']['value']!r}, but the tensors are {layer.name}'s"
        )
    body = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    config |= layer.fields(options, body)
    settings.wrong += options.wrong
    settings.missing += options.missing
    settings.finish()
    record = {**settings.record, **{f"ssm_cfg.{name}": value for name, value in options.record.items()}}
    return Plan(layer.config_class(**{**config, **fields}), layer.model_class, settings=record)


def language_model(settings: Settings, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields that do not depend on the layer."""
    embedding = tensors.get(EMBEDDING, tensors.get(HEAD))
    if embedding is None:
        raise ValueError(f"the checkpoint lacks {EMBEDDING}")
    settings.refuse("d_intermediate", 0, "blocks with a feed-forward layer are not implemented")
    settings.refuse("attn_layer_idx", [], "blocks of softmax attention are not implemented")
    check_vocabulary(settings, embedding.shape[0])
    same = HEAD not in tensors or EMBEDDING not in tensors or same_bytes(tensors[HEAD], tensors[EMBEDDING])
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": settings.take("d_model", embedding.shape[1]),
        "num_hidden_layers": settings.take("n_layer", layer_count(tensors, "backbone.layers.")),
        "norm": "rms_norm" if settings.take("rms_norm", "backbone.norm_f.bias" not in tensors) else "layer_norm",
        "norm_eps": 1e-5,
        "residual_in_fp32": settings.take("residual_in_fp32", default=True),
        "tie_word_embeddings": settings.take("tie_embeddings", same),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def check_vocabulary(settings: Settings, rows: int) -> None:
    """The stated vocabulary, rounded up to the stated multiple, has as many rows as the embedding."""
    vocabulary = settings.take("vocab_size", default=rows)
    multiple = settings.take("pad_vocab_size_multiple", default=1 if vocabulary == rows else None) or 1
    padded = -(-vocabulary // multiple) * multiple
    if padded != rows and settings.stated("pad_vocab_size_multiple")[0]:
        settings.wrong.append(
            f"vocab_size is {vocabulary} and pad_vocab_size_multiple {multiple}, which gives {padded} rows, but the "
            f"embedding has {rows}"
        )


MAMBA_SSM = Format(
    name="mamba_ssm",
    upstream="mamba_ssm's MambaConfig",
    arguments=frozenset((*MATHEMATICAL, *INDIFFERENT)),
    config_classes=tuple(layer.config_class for layer in LAYERS.values()),
    plan=plan,
    rules=rules,
    patterns=(
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
        "model.safetensors",
        "*.bin",
        "*.pt",
        "*.safetensors",
    ),
    companions=(CONFIG,),
)
