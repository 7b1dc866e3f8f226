"""RoFormer in PyTorch, of transformers itself and of the package `roformer`, to NoriaRoFormer with the same head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..configuration.roformer import NoriaRoFormerConfig
from ..modeling.roformer import (
    NoriaRoFormerForCausalLM,
    NoriaRoFormerForMaskedLM,
    NoriaRoFormerForMultipleChoice,
    NoriaRoFormerForQuestionAnswering,
    NoriaRoFormerForSequenceClassification,
    NoriaRoFormerForTokenClassification,
    NoriaRoFormerModel,
)
from .checkpoint import Checkpoint
from .format import Plan, layer_count
from .roformer_folder import check_name, special_ids, tokenizer_writer
from .roformer_rules import BASE, BIAS, DECODER, DECODER_BIAS, QUERY, TABLE, WORDS
from .settings import Settings

CONFIG = "config.json"
COMPANIONS = (
    CONFIG,
    "generation_config.json",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
PATTERNS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "*.safetensors",
    "*.bin",
)
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "linear": "identity",
}
# Fields of transformers' RoFormerConfig, and of every configuration, which its constructor takes.
ARGUMENTS = frozenset(
    [
        "vocab_size",
        "embedding_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "max_position_embeddings",
        "type_vocab_size",
        "initializer_range",
        "layer_norm_eps",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "rotary_value",
        "use_cache",
        "is_decoder",
        "add_cross_attention",
        "tie_word_embeddings",
        "architectures",
        "model_type",
        "num_labels",
        "id2label",
        "label2id",
        "problem_type",
        "chunk_size_feed_forward",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "summary_last_dropout",
    ]
)
SUMMARY = {"summary_type": "first", "summary_use_proj": True, "summary_activation": "tanh"}


class Source:
    """The tensors of a checkpoint without the prefix of the trunk, and what was stated of them."""

    def __init__(self, checkpoint: Checkpoint, arguments: Mapping[str, Any]) -> None:
        self.checkpoint = checkpoint
        self.tensors = {name.removeprefix(BASE): tensor for name, tensor in checkpoint.state.items()}
        if DECODER in self.tensors:
            self.tensors.setdefault(WORDS, self.tensors[DECODER])
        self.settings = Settings(arguments, checkpoint.read_json(CONFIG))
        architectures = self.settings.stated("architectures")[0] or [""]
        self.architecture = str(architectures[0] if isinstance(architectures, list) else architectures)

    def size(self, name: str, axis: int = 0) -> int | None:
        return self.tensors[name].shape[axis] if name in self.tensors else None


def require_roformer(tensors: Mapping[str, Tensor]) -> None:
    gated = next((name for name in tensors if ".gau." in name), None)
    if gated:
        raise ValueError(f"it is a GAU-alpha (there is {gated}), an architecture that this version does not have yet")
    if not {QUERY, BASE + QUERY} & tensors.keys():
        raise ValueError(f"it is not a RoFormer: no {BASE}{QUERY} among {', '.join(list(tensors)[:4])}, ...")
    if not {WORDS, BASE + WORDS, DECODER} & tensors.keys():
        raise ValueError(f"the checkpoint lacks {BASE}{WORDS}")


def trunk_config(source: Source) -> dict[str, Any]:
    """The fields that every head has. Sizes come from the tensors and are compared with what was stated."""
    settings, size = source.settings, source.size
    width = size(QUERY, 1)
    vocabulary = settings.take("vocab_size", size(WORDS))
    settings.refuse("add_cross_attention", False, "the model attends to nothing but its own input")
    heads = settings.take("num_attention_heads")
    if heads and (width or 0) % heads:
        settings.wrong.append(f"num_attention_heads is {heads}, which does not divide hidden_size {width}")
    check_table(source, heads)
    return {
        "vocab_size": vocabulary,
        "embedding_size": settings.take("embedding_size", size(WORDS, 1)),
        "hidden_size": settings.take("hidden_size", width),
        "num_hidden_layers": settings.take("num_hidden_layers", layer_count(source.tensors, "encoder.layer.")),
        "num_attention_heads": heads,
        "intermediate_size": settings.take("intermediate_size", size("encoder.layer.0.intermediate.dense.weight")),
        "type_vocab_size": settings.take("type_vocab_size", size("embeddings.token_type_embeddings.weight")),
        "hidden_act": settings.choose("hidden_act", ACTIVATIONS, "gelu"),
        "norm_eps": settings.take("layer_norm_eps", default=1e-12),
        "dropout": settings.take("hidden_dropout_prob", default=0.1),
        "attention_dropout": settings.take("attention_probs_dropout_prob", default=0.1),
        "max_position_embeddings": settings.take("max_position_embeddings", default=1536),
        "initializer_range": settings.take("initializer_range", default=0.02),
        "rotary_value": settings.take("rotary_value", default=False),
        "tie_word_embeddings": settings.take("tie_word_embeddings", default=True),
        "pad_token_id": settings.take("pad_token_id", default=0),
    }


def check_table(source: Source, heads: int | None) -> None:
    """Notes where the stored sines and cosines are not those of the usual frequencies."""
    table = source.tensors.get(TABLE)
    if table is None or not heads:
        return
    length, width = table.shape
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    usual = torch.cat((angles.sin(), angles.cos()), dim=1)[:, :width]
    tolerance = max(1e-5, 2 * torch.finfo(table.dtype).eps)
    if not torch.allclose(table.double(), usual, rtol=0, atol=tolerance):
        source.settings.wrong.append(f"{TABLE} does not hold the sines and cosines of rotary positions")


def head_class(source: Source, decoder: bool) -> type[PreTrainedModel]:
    """The model with the head that the tensors show."""
    tensors, settings = source.tensors, source.settings
    if BIAS in tensors or DECODER in tensors or DECODER_BIAS in tensors:
        return NoriaRoFormerForCausalLM if decoder else NoriaRoFormerForMaskedLM
    if "qa_outputs.weight" in tensors:
        return NoriaRoFormerForQuestionAnswering
    if "classifier.out_proj.weight" in tensors:
        if decoder:
            settings.wrong.append("is_decoder: the upstream classifies a sequence by its first token, which sees none")
        return NoriaRoFormerForSequenceClassification
    if "classifier.weight" not in tensors:
        return NoriaRoFormerModel
    if "MultipleChoice" not in source.architecture and "sequence_summary.summary.weight" not in tensors:
        return NoriaRoFormerForTokenClassification
    for name, value in SUMMARY.items():
        stated = settings.take(name, default="last" if name == "summary_type" else None)
        if stated != value:
            settings.wrong.append(
                f"{name} is {stated!r}: the model here scores a choice by the first token through a tanh layer "
                f"({', '.join(f'{key}={wanted!r}' for key, wanted in SUMMARY.items())})"
            )
            break
    return NoriaRoFormerForMultipleChoice


def label_fields(source: Source, model_class: type[PreTrainedModel]) -> dict[str, Any]:
    """The names and the number of the classes, for the heads that have them."""
    rows = source.size("classifier.out_proj.weight") or source.size("classifier.weight")
    if rows is None or model_class is NoriaRoFormerForMultipleChoice:
        return {}
    fields = {name: source.settings.stated(name)[0] for name in ("id2label", "label2id", "problem_type")}
    names = fields["id2label"]
    source.settings.take("num_labels", rows if names is None else len(names))
    if names is None:
        fields["num_labels"] = rows
    return {name: value for name, value in fields.items() if value is not None}


def make_plan(
    source: Source, model_class: type[PreTrainedModel], config: dict[str, Any], fields: Mapping[str, Any]
) -> Plan:
    """The plan once every setting is known; ValueError for all that is missing or wrong."""
    if model_class is NoriaRoFormerForSequenceClassification:
        config["classifier_act"] = config["hidden_act"]
    checkpoint, settings = source.checkpoint, source.settings
    check_name(settings, checkpoint.name, config["version"])
    labels = label_fields(source, model_class)
    settings.finish()
    writes = model_class is NoriaRoFormerForCausalLM
    config = config | special_ids(checkpoint, config["vocab_size"], writes)
    for name in ("bos_token_id", "eos_token_id"):
        if settings.stated(name)[1]:
            config[name] = settings.take(name)
    noria = NoriaRoFormerConfig(**{**config, **labels, **fields}, architectures=[model_class.__name__])
    return Plan(
        noria,
        model_class,
        settings=settings.record,
        generation={"max_length": noria.max_position_embeddings} if writes else {},
        write_tokenizer=tokenizer_writer(checkpoint),
    )
