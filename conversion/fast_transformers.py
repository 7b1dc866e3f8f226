"""idiap/fast-transformers, TransformerEncoder of the builders  ->  NoriaLinearTransformerModel.

Attention types "linear" (every position sees all) and "causal-linear", with the default feature map elu + 1. The body
has no embedding and no head: the model gets `vocab_size` 0 and takes `inputs_embeds`. The recurrent builders make the
same state dict.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from ..configuration.linear_transformer import NoriaLinearTransformerConfig
from ..modeling.linear_transformer import NoriaLinearTransformerModel
from .checkpoint import Checkpoint
from .format import Format, Plan, common_prefix, layer_count
from .rules import Rule
from .settings import Settings

ANCHOR = "layers.0.attention.query_projection.weight"
BIDIRECTIONAL = {"linear": True, "causal-linear": False}
MATHEMATICAL = [
    "n_layers",
    "n_heads",
    "query_dimensions",
    "value_dimensions",
    "feed_forward_dimensions",
    "model_dimensions",
    "dropout",
    "activation",
    "final_normalization",
    "attention_type",
    "feature_map",
]
# Parameters of the builders' other attention types, which "linear" and "causal-linear" never see.
INDIFFERENT = [
    "attention_dropout",
    "softmax_temp",
    "clusters",
    "iterations",
    "bits",
    "hash_bias",
    "topk",
    "local_context",
    "length_limit",
    "chunk_size",
    "rounds",
    "masked",
    "max_sequence_length",
    "aft_parameterization",
    "event_dispatcher",
]

RULES = tuple(
    Rule(f"{source}.{kind}", f"{target}.{kind}")
    for source, target in (
        ("layers.{}.attention.query_projection", "layers.{}.mixer.q_proj"),
        ("layers.{}.attention.key_projection", "layers.{}.mixer.k_proj"),
        ("layers.{}.attention.value_projection", "layers.{}.mixer.v_proj"),
        ("layers.{}.attention.out_projection", "layers.{}.mixer.o_proj"),
        ("layers.{}.norm1", "layers.{}.mixer_norm"),
        ("layers.{}.linear1", "layers.{}.mlp.up_proj"),
        ("layers.{}.linear2", "layers.{}.mlp.down_proj"),
        ("layers.{}.norm2", "layers.{}.mlp_norm"),
        ("norm", "norm"),
    )
    for kind in ("weight", "bias")
)


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    return RULES


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    prefix = common_prefix(checkpoint.state, ANCHOR)
    tensors = {name[len(prefix) :]: tensor for name, tensor in checkpoint.state.items() if name.startswith(prefix)}
    refuse_foreign(tensors, arguments)
    settings = Settings(arguments, {})
    config = linear_transformer_config(settings, tensors)
    settings.finish()
    noria = NoriaLinearTransformerConfig(**{**config, **fields})
    return Plan(noria, NoriaLinearTransformerModel, prefix, settings.record)


def refuse_foreign(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> None:
    if any(name.endswith(".feature_map.omega") for name in tensors):
        raise ValueError(
            "it uses a random feature map (Favor or Fourier features: there are feature_map.omega tensors), which "
            "comes with the Performer architecture and is not implemented yet"
        )
    if arguments.get("feature_map") not in (None, "elu"):
        raise ValueError(
            f"feature_map={arguments['feature_map']!r} cannot be converted: only the default, elu + 1, can"
        )
    if "layers.0.cross_attention.query_projection.weight" in tensors:
        raise ValueError("it is a TransformerDecoder with cross attention; only TransformerEncoder can be converted")
    if ANCHOR not in tensors:
        names = ", ".join(list(tensors)[:4])
        raise ValueError(f"it is not a TransformerEncoder of fast-transformers: no {ANCHOR} among {names}, ...")


def linear_transformer_config(settings: Settings, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of NoriaLinearTransformerConfig from the builder's arguments and the tensors' shapes."""
    keys, width = tensors[ANCHOR].shape
    values = tensors["layers.0.attention.value_projection.weight"].shape[0]
    heads, query_dim = head_count(settings, keys, values)
    value_dim = settings.take("value_dimensions", values // heads if heads else None, default=0)
    return {
        "vocab_size": 0,
        "hidden_size": settings.take("model_dimensions", width),
        "num_hidden_layers": settings.take("n_layers", layer_count(tensors, "layers.")),
        "num_attention_heads": heads,
        "head_dim": query_dim,
        "value_head_dim": value_dim,
        "intermediate_size": settings.take("feed_forward_dimensions", tensors["layers.0.linear1.weight"].shape[0]),
        "hidden_act": settings.choose("activation", {"relu": "relu", "gelu": "gelu"}, "relu"),
        "norm_eps": 1e-5,
        "normalizer_eps": 1e-6,
        "final_norm": settings.take("final_normalization", "norm.weight" in tensors),
        "bidirectional": settings.choose("attention_type", BIDIRECTIONAL),
        "feature_map": "elu",
        "rotary": "none",
        "position_encoding": "none",
        "dropout": settings.take("dropout", default=0.1),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def head_count(settings: Settings, keys: int, values: int) -> tuple[int, int]:
    """Heads and their query width. The tensors show only their product: one of the arguments must be given."""
    for name, total in (("query_dimensions", keys), ("value_dimensions", values)):
        size, _ = settings.stated(name)
        if size and isinstance(size, int) and total % size == 0:
            heads = settings.take("n_heads", total // size)
            return heads, settings.take("query_dimensions", keys // heads)
    heads = settings.take("n_heads")
    if heads and (keys % heads or values % heads):
        settings.wrong.append(f"n_heads is {heads}, which divides not both widths, {keys} and {values}")
    return heads or 0, settings.take("query_dimensions", keys // heads if heads else None, default=0)


FAST_TRANSFORMERS = Format(
    name="fast_transformers",
    upstream="fast-transformers' builder",
    arguments=frozenset((*MATHEMATICAL, *INDIFFERENT)),
    config_classes=(NoriaLinearTransformerConfig,),
    plan=plan,
    rules=rules,
)
