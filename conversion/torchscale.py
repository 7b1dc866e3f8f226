"""microsoft/torchscale, RetNetDecoder  ->  NoriaRetNetForCausalLM (NoriaRetNetModel where it has no output layer).

Read from fairseq checkpoints ({"model": {"decoder. ...": ...}, "cfg" or "args": ...}) and from bare state dicts.
Defaults are those of torchscale's RetNetConfig, which fairseq's `override` starts from.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration.retnet import NoriaRetNetConfig
from ..modeling.retnet import NoriaRetNetForCausalLM, NoriaRetNetModel
from .checkpoint import Checkpoint
from .format import Format, Plan, common_prefix, layer_count
from .rules import Rule, same_bytes
from .settings import Settings
from .symbols import Opaque, mapping, plain

Plain = str | int | float | bool | None
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu"}
MATHEMATICAL = [
    "decoder_embed_dim",
    "decoder_value_embed_dim",
    "decoder_retention_heads",
    "decoder_ffn_embed_dim",
    "decoder_layers",
    "decoder_normalize_before",
    "activation_fn",
    "no_scale_embedding",
    "layernorm_embedding",
    "moe_freq",
    "deepnorm",
    "multiway",
    "share_decoder_input_output_embed",
    "no_output_layer",
    "layernorm_eps",
    "vocab_size",
    "dropout",
]
# Without influence on a converted model: training, experts, the relative positions of torchscale's other decoders.
INDIFFERENT = [
    "drop_path_rate",
    "activation_dropout",
    "moe_top1_expert",
    "moe_expert_count",
    "moe_gating_use_fp32",
    "moe_eval_capacity_token_fraction",
    "moe_second_expert_policy",
    "moe_normalize_gate_prob_before_dropping",
    "use_xmoe",
    "rel_pos_buckets",
    "max_rel_pos",
    "subln",
    "max_target_positions",
    "chunkwise_recurrent",
    "recurrent_chunk_size",
    "checkpoint_activations",
    "fsdp",
    "ddp_rank",
    "xpos_rel_pos",
    "xpos_scale_base",
    "encoder_normalize_before",
]

BODY = (
    Rule("layers.{}.retention_layer_norm.weight", "layers.{}.mixer_norm.weight"),
    Rule("layers.{}.retention.q_proj.weight", "layers.{}.mixer.q_proj.weight"),
    Rule("layers.{}.retention.k_proj.weight", "layers.{}.mixer.k_proj.weight"),
    Rule("layers.{}.retention.v_proj.weight", "layers.{}.mixer.v_proj.weight"),
    Rule("layers.{}.retention.g_proj.weight", "layers.{}.mixer.g_proj.weight"),
    Rule("layers.{}.retention.out_proj.weight", "layers.{}.mixer.o_proj.weight"),
    Rule("layers.{}.final_layer_norm.weight", "layers.{}.mlp_norm.weight"),
    # fc1 feeds the activation, gate multiplies it.
    Rule("layers.{}.ffn.fc1.weight", "layers.{}.mlp.gate_proj.weight"),
    Rule("layers.{}.ffn.gate.weight", "layers.{}.mlp.up_proj.weight"),
    Rule("layers.{}.ffn.fc2.weight", "layers.{}.mlp.down_proj.weight"),
    Rule("layernorm_embedding.weight", "embedding_norm.weight"),
    Rule("layer_norm.weight", "norm.weight"),
    Rule("embed_tokens.weight", "embed_tokens.weight"),
)
BUFFERS = (
    Rule("retnet_rel_pos.angle", reason="recomputed from rotary_base"),
    Rule("retnet_rel_pos.decay", reason="recomputed from num_attention_heads"),
)
HEAD = Rule("output_projection.weight", "lm_head.weight")
TIED_HEAD = Rule("output_projection.weight", reason="tied to the embedding", copy_of="embed_tokens.weight")


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    if "NoriaRetNetModel" in (config.architectures or ()):
        return (*BODY, *BUFFERS)
    body = tuple(Rule(rule.source, f"model.{rule.target}") for rule in BODY)
    return (*body, TIED_HEAD if config.tie_word_embeddings else HEAD, *BUFFERS)


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    prefix = common_prefix(checkpoint.state, "layers.0.retention.q_proj.weight")
    tensors = {name[len(prefix) :]: tensor for name, tensor in checkpoint.state.items() if name.startswith(prefix)}
    if "layers.0.retention.q_proj.weight" not in tensors:
        refuse_foreign(tensors)
    in_file = fairseq_arguments(checkpoint.content, bool(arguments))
    settings = Settings(arguments, in_file)
    if not arguments and not in_file:
        settings.missing += ["activation_fn", "no_scale_embedding", "layernorm_eps"]
    config = retnet_config(settings, tensors)
    model_class = head_class(settings, tensors, config)
    settings.finish()
    noria = NoriaRetNetConfig(**{**config, **stored_tables(tensors), **fields}, architectures=[model_class.__name__])
    return Plan(noria, model_class, prefix, settings.record)


def refuse_foreign(tensors: Mapping[str, Tensor]) -> None:
    if any(".retention.q_proj.A." in name for name in tensors):
        raise ValueError("it has two sets of weights per layer (multiway=True), which RetNet here does not have")
    names = ", ".join(list(tensors)[:4])
    raise ValueError(f"it is not a RetNet of torchscale: no layers.0.retention.q_proj.weight among {names}, ...")


def fairseq_arguments(content: Any, given: bool) -> dict[str, Any]:
    """The model's arguments as fairseq stores them: cfg["model"] (mapping, namespace or omegaconf), or args.

    ValueError where they are of a class that is not read, unless the caller has `given` them.
    """
    root = mapping(content) or {}
    places = ((mapping(root.get("cfg")) or {}).get("model"), root.get("args"), root.get("cfg"))
    stored = next((place for place in map(mapping, places[:2]) if place is not None), None)
    unread = [plain(place) for place in places if isinstance(plain(place), Opaque)]
    if stored is None and unread and not given:
        raise ValueError(
            f"its configuration is an object of class {unread[0].symbol}, which is not read: give the upstream's own "
            "arguments as config={...} (--config key=value)"
        )
    known = {name: plain(value) for name, value in (stored or {}).items() if name in (*MATHEMATICAL, *INDIFFERENT)}
    unreadable = [f"{name} ({value!r})" for name, value in known.items() if not isinstance(value, Plain)]
    if unreadable:
        raise ValueError(f"the values of {', '.join(unreadable)} are objects that are not read")
    return known


def retnet_config(settings: Settings, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of NoriaRetNetConfig from torchscale's arguments and the tensors' shapes."""
    width = tensors["layers.0.retention.q_proj.weight"].shape[0]
    pre_norm = "layer_norm.weight" in tensors
    layers = settings.take("decoder_layers", layer_count(tensors, "layers."))
    settings.take("decoder_normalize_before", pre_norm)
    settings.refuse("multiway", False, "its second set of weights has no place in the model")
    settings.refuse("moe_freq", 0, "mixtures of experts are not implemented")
    deepnorm = settings.take("deepnorm", default=False)
    return {
        "hidden_size": settings.take("decoder_embed_dim", width),
        "key_size": width,
        "value_size": settings.take("decoder_value_embed_dim", shape(tensors, "layers.0.retention.v_proj.weight")),
        "intermediate_size": settings.take("decoder_ffn_embed_dim", shape(tensors, "layers.0.ffn.fc1.weight")),
        "num_hidden_layers": layers,
        "num_attention_heads": settings.take("decoder_retention_heads", shape(tensors, "retnet_rel_pos.decay")),
        "hidden_act": settings.choose("activation_fn", ACTIVATIONS, "gelu"),
        "norm_eps": settings.take("layernorm_eps", default=1e-6),
        "scale_embedding": not settings.take("no_scale_embedding", default=True),
        "embedding_norm": settings.take("layernorm_embedding", "layernorm_embedding.weight" in tensors),
        "post_norm": not pre_norm,
        "residual_scale": math.pow(2.0 * layers, 0.25) if deepnorm else 1.0,
        "dropout": settings.take("dropout", default=0.0),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def shape(tensors: Mapping[str, Tensor], name: str) -> int | None:
    return tensors[name].shape[0] if name in tensors else None


def head_class(settings: Settings, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> type[PreTrainedModel]:
    """The model with or without an output layer; completes `config` with the vocabulary and the tying."""
    embedding, head = tensors.get("embed_tokens.weight"), tensors.get("output_projection.weight")
    if settings.stated("vocab_size")[0] in (None, -1, 0):
        config["vocab_size"] = 0 if embedding is None else embedding.shape[0]
    else:
        config["vocab_size"] = settings.take("vocab_size", shape(tensors, "embed_tokens.weight") or 0)
    if head is not None and embedding is None:
        settings.wrong.append("there is an output_projection.weight but no embed_tokens.weight")
    same = head is not None and embedding is not None and same_bytes(head, embedding)
    if head is not None:
        stated = settings.stated("share_decoder_input_output_embed")[0] is not None
        tied = settings.take("share_decoder_input_output_embed", None if stated else same)
        config["tie_word_embeddings"] = tied
        settings.refuse("no_output_layer", False, "the file has an output_projection.weight")
        return NoriaRetNetForCausalLM
    if settings.take("share_decoder_input_output_embed", default=False):
        config["tie_word_embeddings"] = True
        return NoriaRetNetForCausalLM
    if embedding is not None and not settings.stated("no_output_layer")[0]:
        settings.wrong.append(
            "output_projection.weight is missing: say share_decoder_input_output_embed=true where the embedding is "
            "used for it, no_output_layer=true where there is none"
        )
    return NoriaRetNetModel


def stored_tables(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields for the stored tables of positions and decays, where they are not the usual ones.

    The upstream computes with these tables, and a file in half precision holds them rounded.
    """
    angle, decay = tensors.get("retnet_rel_pos.angle"), tensors.get("retnet_rel_pos.decay")
    fields: dict[str, Any] = {}
    if angle is not None:
        angle = angle.double()[::2]
        usual = 10000.0 ** -torch.linspace(0, 1, len(angle), dtype=torch.float64)
        if not torch.allclose(angle, usual, rtol=1e-6, atol=0):
            fields["rotary_frequencies"] = angle.tolist()
    if decay is not None:
        usual = torch.log1p(-(2.0 ** (-5 - torch.arange(len(decay), dtype=torch.float64))))
        # torchscale takes the logarithm in float32, where 1 - 2^-25 is 1.
        if not torch.allclose(decay.double(), usual, rtol=1e-5, atol=1e-7):
            fields["log_decay"] = decay.double().tolist()
    return fields


TORCHSCALE = Format(
    name="torchscale",
    upstream="torchscale's RetNetConfig",
    arguments=frozenset((*MATHEMATICAL, *INDIFFERENT)),
    config_classes=(NoriaRetNetConfig,),
    plan=plan,
    rules=rules,
)
