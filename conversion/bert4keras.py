"""bojone/bert4keras, RoFormer v1, v2, GPT and Sim  ->  NoriaRoFormerForMaskedLM or ...ForCausalLM.

Read from TensorFlow checkpoints as published: bert_config.json, bert_model.ckpt.* and vocab.txt in one folder, whose
name tells a RoFormer-GPT, since its tensors are those of v1. Kernels are stored (in, out), tied weights once. The
model sees what the original saw where `attention_mask` is 0 at padding.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..configuration.roformer import NoriaRoFormerConfig
from ..modeling.roformer import NoriaRoFormerForCausalLM, NoriaRoFormerForMaskedLM, NoriaRoFormerModel
from .bert4keras_rules import HEAD, LAYER, NEXT_SENTENCE, NORM, POOLER, QUERY, TYPES, WORDS, rules
from .checkpoint import Checkpoint
from .format import Format, Plan, layer_count
from .roformer_folder import check_name, special_ids, tokenizer_writer
from .settings import Settings

CONFIG, VOCABULARY = "bert_config.json", "vocab.txt"

# Activations of Keras and of bert4keras, whose gelu is the exact one.
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "swish": "silu",
    "silu": "silu",
    "tanh": "tanh",
    "linear": "identity",
    "gelu_tanh": "gelu_tanh",
}
POOLERS = {False: "none", True: "tanh", "tanh": "tanh", "linear": "linear"}
MATHEMATICAL = [
    "model",
    "application",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "attention_head_size",
    "attention_key_size",
    "intermediate_size",
    "embedding_size",
    "hidden_act",
    "type_vocab_size",
    "segment_vocab_size",
    "max_position",
    "max_position_embeddings",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout_rate",
    "attention_dropout_rate",
    "initializer_range",
    "layer_norm_eps",
    "epsilon",
    "with_pool",
    "with_nsp",
    "with_mlm",
]
# What changes the model in ways that ours does not have, each with the value that changes nothing.
REFUSED = {
    "residual_attention_scores": (False, "attention scores are not added up over the layers"),
    "shared_segment_embeddings": (False, "token types have embeddings of their own"),
    "layer_norm_cond": (None, "norms have no condition"),
    "keep_tokens": (None, "convert the whole vocabulary"),
    "compound_tokens": (None, "convert the whole vocabulary"),
}
# Of the graph, not of the mathematics, or of other models of bert4keras.
INDIFFERENT = [
    "name",
    "prefix",
    "layers",
    "sequence_length",
    "custom_position_ids",
    "hierarchical_position",
    "ignore_invalid_weights",
    "autoresize_weights",
    "return_keras_model",
    "layer_norm_cond_hidden_size",
    "layer_norm_cond_hidden_act",
    "additional_input_layers",
    "attention_caches",
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "embedding_initializer_range",
]
SLOTS = {"adam_m", "adam_v", "Adam", "Adam_1", "m", "v", "Momentum", "lamb_m", "lamb_v", "AdamWeightDecayOptimizer"}
COUNTERS = {"global_step", "beta1_power", "beta2_power"}


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    drop_slots(checkpoint)
    tensors = checkpoint.state
    refuse_foreign(tensors)
    settings = Settings(arguments, checkpoint.read_json(CONFIG))
    version = 1 if NORM in tensors else 2
    config = sizes(settings, tensors) | roformer_config(settings, tensors, version)
    application = find_application(settings, checkpoint)
    config |= {"version": version, "unilm": application == "unilm", "bidirectional": application != "lm"}
    model_class = head_class(settings, tensors, version, application)
    check_name(settings, checkpoint.name, version)
    settings.finish()
    config |= special_ids(checkpoint, config["vocab_size"], application != "encoder")
    noria = NoriaRoFormerConfig(**{**config, **fields}, architectures=[model_class.__name__])
    return Plan(
        noria,
        model_class,
        settings=settings.record,
        generation={"max_length": noria.max_position_embeddings},
        write_tokenizer=tokenizer_writer(checkpoint),
    )


def drop_slots(checkpoint: Checkpoint) -> None:
    """Leaves out what an optimiser kept beside the variables."""
    for name in list(checkpoint.state):
        stem, _, last = name.rpartition("/")
        if last in COUNTERS or (last in SLOTS and stem in checkpoint.state):
            del checkpoint.state[name]
            checkpoint.dropped[name] = "optimizer state"


def refuse_foreign(tensors: Mapping[str, Tensor]) -> None:
    gated = next((name for name in tensors if "/gau/" in name), None)
    if gated:
        raise ValueError(f"it is a GAU-alpha (there is {gated}), an architecture that this version does not have yet")
    if "bert/embeddings/position_embeddings" in tensors:
        raise ValueError(
            "it is a BERT with learned positions (there is bert/embeddings/position_embeddings), not a RoFormer"
        )
    if QUERY not in tensors or WORDS not in tensors:
        lacking = QUERY if QUERY not in tensors else WORDS
        raise ValueError(f"it is not a RoFormer of bert4keras: no {lacking} among {', '.join(list(tensors)[:4])}, ...")


def sizes(settings: Settings, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of NoriaRoFormerConfig that the tensors show, compared with what was stated."""
    vocabulary, embedding = tensors[WORDS].shape
    width, keys = tensors[QUERY].shape
    values = size_of(tensors, f"{LAYER}0/attention/self/value/kernel", 1)
    heads = settings.take("num_attention_heads")
    if heads and (keys % heads or (values or 0) % heads):
        settings.wrong.append(
            f"num_attention_heads is {heads}, which does not divide {keys}, the width of the queries"
        )
    key_size = settings.take("attention_key_size", keys // heads if heads else None, default=0)
    value_size = settings.take("attention_head_size", values // heads if heads and values else None, default=0)
    if value_size and key_size != value_size:
        settings.wrong.append(
            f"attention_key_size {key_size} is not attention_head_size {value_size}: queries, keys and values are "
            "equally wide here"
        )
    stated = [name for name in ("segment_vocab_size", "type_vocab_size") if settings.stated(name)[1]]
    types = settings.take((*stated, "type_vocab_size")[0], size_of(tensors, TYPES, 0), default=0)
    if not types:
        settings.wrong.append(f"it has no token types (no {TYPES}), which the model here always adds")
    return {
        "vocab_size": settings.take("vocab_size", vocabulary),
        "embedding_size": settings.take("embedding_size", embedding),
        "hidden_size": settings.take("hidden_size", width),
        "num_hidden_layers": settings.take("num_hidden_layers", numbered_layers(tensors)),
        "num_attention_heads": heads,
        "head_dim": key_size,
        "intermediate_size": settings.take(
            "intermediate_size", size_of(tensors, f"{LAYER}0/intermediate/dense/kernel", 1), default=0
        ),
        "type_vocab_size": types,
    }


def size_of(tensors: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    return tensors[name].shape[axis] if name in tensors else None


def numbered_layers(tensors: Mapping[str, Tensor]) -> int:
    return layer_count([name.replace("/", ".") for name in tensors], LAYER.replace("/", "."))


def roformer_config(settings: Settings, tensors: Mapping[str, Tensor], version: int) -> dict[str, Any]:
    """The other fields of NoriaRoFormerConfig: what no tensor shows."""
    for name, (accepted, reason) in REFUSED.items():
        settings.refuse(name, accepted, reason)
    model = settings.take("model", default={1: "roformer", 2: "roformer_v2"}[version])
    if str(model).lower() != {1: "roformer", 2: "roformer_v2"}[version]:
        settings.wrong.append(f"model is {model!r}, but the tensors are those of RoFormer v{version}")
    if version == 2 and tensors[WORDS].shape[1] != tensors[QUERY].shape[0]:
        settings.wrong.append(
            "bert4keras does not save the output mapping of a RoFormerV2 whose embedding_size differs"
        )
    if isinstance(settings.stated("hidden_act")[0], list):
        settings.wrong.append("hidden_act is a list: gated feed-forward layers are not in bert4keras' checkpoints")
        activation = None
    else:
        activation = settings.choose("hidden_act", ACTIVATIONS)
    return {
        "hidden_act": activation,
        "norm_eps": either(settings, ("layer_norm_eps", "epsilon"), 1e-12),
        "dropout": either(settings, ("dropout_rate", "hidden_dropout_prob"), 0.0),
        "attention_dropout": either(settings, ("attention_dropout_rate", "attention_probs_dropout_prob"), 0.0),
        "max_position_embeddings": either(settings, ("max_position", "max_position_embeddings"), 512),
        "initializer_range": settings.take("initializer_range", default=0.02),
        "pooler": find_pooler(settings, tensors),
        "pad_token_id": 0,
    }


def either(settings: Settings, names: Sequence[str], default: Any) -> Any:
    """The first of several names for one argument that is stated."""
    stated = next((name for name in names if settings.stated(name)[1]), names[-1])
    return settings.take(stated, default=default)


def find_pooler(settings: Settings, tensors: Mapping[str, Tensor]) -> str:
    if POOLER not in tensors:
        if settings.take("with_pool", default=False):
            settings.wrong.append(f"with_pool is stated, but there is no {POOLER}")
        return "none"
    next_sentence = settings.take("with_nsp", default=any(name.startswith(NEXT_SENTENCE) for name in tensors))
    stated = settings.stated("application")[0]
    usual = True if next_sentence or stated in ("encoder", "lm") else "linear"
    return settings.choose("with_pool", POOLERS, usual) or "none"


def find_application(settings: Settings, checkpoint: Checkpoint) -> str:
    """ "encoder", "lm" (GPT) or "unilm" (Sim): as stated, else by the folder's name, else by Sim's linear pooler."""
    usual = "encoder"
    if re.search(r"roformer[-_]?gpt", checkpoint.name, re.IGNORECASE):
        usual = "lm"
    elif settings.record.get("with_pool", {}).get("value") == "linear":
        usual = "unilm"
    return settings.choose("application", {name: name for name in ("encoder", "lm", "unilm")}, usual) or usual


def head_class(
    settings: Settings, tensors: Mapping[str, Tensor], version: int, application: str
) -> type[PreTrainedModel]:
    """The model with its head where the checkpoint has one: v2's is the embedding, v1's has tensors of its own."""
    stored = version == 2 or HEAD in tensors
    wanted = settings.take("with_mlm", default=stored)
    if wanted and not stored:
        settings.wrong.append(f"with_mlm is {wanted!r}, but there is no {HEAD}")
    if not wanted:
        return NoriaRoFormerModel
    return NoriaRoFormerForMaskedLM if application == "encoder" else NoriaRoFormerForCausalLM


BERT4KERAS = Format(
    name="bert4keras",
    upstream="bert4keras' build_transformer_model",
    arguments=frozenset((*MATHEMATICAL, *REFUSED, *INDIFFERENT)),
    config_classes=(NoriaRoFormerConfig,),
    plan=plan,
    rules=rules,
    patterns=("*.index",),
    companions=(CONFIG, VOCABULARY, "checkpoint"),
)
