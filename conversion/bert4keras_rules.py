"""The variables of bert4keras' RoFormers in TensorFlow checkpoints, named as in Google's BERT, and their places."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

from ..modeling.roformer import NoriaRoFormerModel
from .rules import Rule

WORDS, TYPES = "bert/embeddings/word_embeddings", "bert/embeddings/token_type_embeddings"
LAYER, QUERY = "bert/encoder/layer_", "bert/encoder/layer_0/attention/self/query/kernel"
HEAD, POOLER, NEXT_SENTENCE = "cls/predictions/output_bias", "bert/pooler/dense/kernel", "cls/seq_relationship/"
NORM = "bert/embeddings/LayerNorm/gamma"


def dense(source: str, target: str) -> tuple[Rule, ...]:
    return Rule(f"{source}/kernel", f"{target}.weight", torch.t, torch.t), Rule(f"{source}/bias", f"{target}.bias")


def norm(source: str, target: str) -> tuple[Rule, ...]:
    return Rule(f"{source}/LayerNorm/gamma", f"{target}.weight"), Rule(f"{source}/LayerNorm/beta", f"{target}.bias")


BODY = (
    Rule(WORDS, "embed_tokens.weight"),
    Rule(TYPES, "embed_types.weight"),
    *norm("bert/embeddings", "embed_norm"),
    *dense("bert/encoder/embedding_hidden_mapping_in", "embed_project"),
    *dense("bert/encoder/layer_{}/attention/self/query", "layers.{}.mixer.q_proj"),
    *dense("bert/encoder/layer_{}/attention/self/key", "layers.{}.mixer.k_proj"),
    *dense("bert/encoder/layer_{}/attention/self/value", "layers.{}.mixer.v_proj"),
    *dense("bert/encoder/layer_{}/attention/output/dense", "layers.{}.mixer.o_proj"),
    *norm("bert/encoder/layer_{}/attention/output", "layers.{}.mixer_norm"),
    *dense("bert/encoder/layer_{}/intermediate/dense", "layers.{}.mlp.up_proj"),
    *dense("bert/encoder/layer_{}/output/dense", "layers.{}.mlp.down_proj"),
    *norm("bert/encoder/layer_{}/output", "layers.{}.mlp_norm"),
)
POOLING = dense("bert/pooler/dense", "pooler.dense")
PREDICTIONS = (
    *dense("cls/predictions/transform/dense", "lm_head.transform"),
    *norm("cls/predictions/transform", "lm_head.norm"),
    Rule(HEAD, "lm_head.decoder.bias"),
)
SENTENCES = tuple(
    Rule(f"{NEXT_SENTENCE}output_{name}", reason="the model predicts no next sentence") for name in ("weights", "bias")
)


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    bare = NoriaRoFormerModel.__name__ in (config.architectures or ())
    pooled = config.pooler != "none"
    body = (*BODY, *POOLING) if pooled else BODY
    prefix = "" if bare else "model."
    return (
        *(Rule(rule.source, f"{prefix}{rule.target}", rule.transform, rule.inverse) for rule in body),
        *(without(POOLING, "the model has no pooler") if not pooled else ()),
        *(without(PREDICTIONS, "the model has no head") if bare else PREDICTIONS),
        *SENTENCES,
    )


def without(rules: Sequence[Rule], reason: str) -> tuple[Rule, ...]:
    """The same tensors, kept beside the model."""
    return tuple(Rule(rule.source, reason=reason) for rule in rules)
