"""The tensors of RoFormer in PyTorch, as transformers and the package `roformer` name them, and their places."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedConfig

from .rules import Rule

BASE = "roformer."
WORDS = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.0.attention.self.query.weight"
TABLE = "encoder.embed_positions.weight"
POOLER = "pooler.dense.weight"
TRANSFORM = "cls.predictions.transform.dense.weight"
DECODER, DECODER_BIAS, BIAS = (f"cls.predictions.{name}" for name in ("decoder.weight", "decoder.bias", "bias"))

MODULES = {
    "embeddings.LayerNorm": "embed_norm",
    "embeddings_project": "embed_project",
    "encoder.layer.{}.attention.self.query": "layers.{}.mixer.q_proj",
    "encoder.layer.{}.attention.self.key": "layers.{}.mixer.k_proj",
    "encoder.layer.{}.attention.self.value": "layers.{}.mixer.v_proj",
    "encoder.layer.{}.attention.output.dense": "layers.{}.mixer.o_proj",
    "encoder.layer.{}.attention.output.LayerNorm": "layers.{}.mixer_norm",
    "encoder.layer.{}.intermediate.dense": "layers.{}.mlp.up_proj",
    "encoder.layer.{}.output.dense": "layers.{}.mlp.down_proj",
    "encoder.layer.{}.output.LayerNorm": "layers.{}.mlp_norm",
}
POOLING = {"pooler.dense": "pooler.dense"}
PREDICTIONS = {
    "cls.predictions.transform.dense": "lm_head.transform",
    "cls.predictions.transform.LayerNorm": "lm_head.norm",
}
HEADS = {
    "ForMaskedLM": PREDICTIONS,
    "ForCausalLM": PREDICTIONS,
    "ForSequenceClassification": {f"classifier.{name}": f"classifier.{name}" for name in ("dense", "out_proj")},
    "ForTokenClassification": {"classifier": "classifier"},
    "ForQuestionAnswering": {"qa_outputs": "classifier"},
    "ForMultipleChoice": {"sequence_summary.summary": "classifier.dense", "classifier": "classifier.out_proj"},
}
ELECTRA = ("discriminator_predictions.dense", "discriminator_predictions.dense_prediction")
ELECTRA = (*ELECTRA, "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head")


def parts(modules: dict[str, str], before: str = "", after: str = "") -> Iterator[Rule]:
    for source, target in modules.items():
        for part in ("weight", "bias"):
            yield Rule(f"{before}{source}.{part}", f"{after}{target}.{part}")


def body(config: PreTrainedConfig, before: str, after: str) -> Iterator[Rule]:
    yield Rule(f"{before}{WORDS}", f"{after}embed_tokens.weight")
    yield Rule(f"{before}embeddings.token_type_embeddings.weight", f"{after}embed_types.weight")
    yield from parts(MODULES, before, after)
    yield Rule(f"{before}{TABLE}", reason="sines and cosines of the positions, recomputed")
    if config.pooler != "none":
        yield from parts(POOLING, before, after)


def language_head(config: PreTrainedConfig) -> Iterator[Rule]:
    """What stands in `cls.predictions` beside the transform: a decoder tied to the embedding, and its bias twice."""
    if config.tie_word_embeddings:
        yield Rule(DECODER, reason="tied to the embedding", copy_of=f"{BASE}{WORDS}")
        yield Rule(BIAS, "lm_head.decoder.bias")
        yield Rule(DECODER_BIAS, reason="repeats the bias of the head", copy_of=BIAS)
    else:
        yield Rule(DECODER, "lm_head.decoder.weight")
        yield Rule(DECODER_BIAS, "lm_head.decoder.bias")
        yield Rule(BIAS, reason="unused: the decoder has its own")


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    """The table for the head that `config.architectures` names; a bare model has its tensors with or without BASE."""
    head = (config.architectures or [""])[0].removeprefix("NoriaRoFormer")
    electra = (
        Rule(f"{name}.{part}", reason="a head of ELECTRA's training, which the model does not have")
        for name in ELECTRA
        for part in ("weight", "bias")
    )
    if head not in HEADS:
        return (*body(config, "", ""), *body(config, BASE, ""), *electra)
    heads = (*parts(HEADS[head]), *(language_head(config) if HEADS[head] is PREDICTIONS else ()))
    return (*body(config, BASE, "model."), *heads, *electra)
