"""The models that are compared: one softmax transformer of transformers, and ours, with as many parameters.

A layer of width d holds 12 d^2 parameters in each: the widths of the feed-forward layers are chosen for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from harness import table
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from noria import (
    NoriaLinearTransformerConfig,
    NoriaLinearTransformerForCausalLM,
    NoriaRetNetConfig,
    NoriaRetNetForCausalLM,
)

HEAD_DIM = 64


class Shape(NamedTuple):
    layers: int
    width: int
    vocabulary: int
    tied: bool = False

    def common(self) -> dict:
        """What all configurations are told; nothing ends a text early."""
        return {
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def sizes(self) -> dict:
        heads = self.width // HEAD_DIM
        return {"hidden_size": self.width, "num_hidden_layers": self.layers, "num_attention_heads": heads}


SMALL = Shape(layers=4, width=256, vocabulary=1000)
BASE = Shape(layers=12, width=768, vocabulary=50280, tied=True)


def even(size: float) -> int:
    return 8 * round(size / 8)


def llama(shape: Shape, parameters: int | None = None) -> PreTrainedModel:
    """A Llama of this shape, its feed-forward layers 8/3 of the width, or as wide as fits a number of parameters."""
    inner = shape.width * 8 / 3
    if parameters is not None:
        with torch.device("meta"):
            missing = parameters - llama(shape).num_parameters()
        inner += missing / (3 * shape.width * shape.layers)
    sizes = shape.sizes() | {"intermediate_size": even(inner)}
    config = LlamaConfig(**shape.common(), **sizes, max_position_embeddings=131072, pad_token_id=None)
    return LlamaForCausalLM(config)


def gpt2(shape: Shape) -> PreTrainedModel:
    heads = shape.width // HEAD_DIM
    config = GPT2Config(**shape.common(), n_embd=shape.width, n_layer=shape.layers, n_head=heads)
    return GPT2LMHeadModel(config)


def linear_transformer(shape: Shape) -> PreTrainedModel:
    return NoriaLinearTransformerForCausalLM(NoriaLinearTransformerConfig(**shape.common(), **shape.sizes()))


def retnet(shape: Shape) -> PreTrainedModel:
    sizes = shape.sizes() | {"intermediate_size": even(shape.width * 4 / 3)}
    return NoriaRetNetForCausalLM(NoriaRetNetConfig(**shape.common(), **sizes))


OURS = {"LinearTransformer": linear_transformer, "RetNet": retnet}
MODELS = {"Llama": llama} | OURS | {"GPT-2": gpt2}


def build(names: list[str], shape: Shape) -> dict[str, PreTrainedModel]:
    """The named models with random weights, ready for evaluation."""
    torch.manual_seed(0)
    return {name: MODELS[name](shape).eval() for name in names}


def parameter_table(models: dict[str, PreTrainedModel]) -> str:
    first = next(iter(models.values())).num_parameters()
    rows = [(n, f"{m.num_parameters():,}", f"{m.num_parameters() / first - 1:+.1%}") for n, m in models.items()]
    return table(["model", "parameters", "against the first"], rows)
