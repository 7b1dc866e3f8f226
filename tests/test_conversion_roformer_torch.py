"""RoFormer in PyTorch, of transformers and of the package `roformer`: the same outputs, and the same files back."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, RoFormerConfig

import noria
from noria.conversion.bundle import read_bundle
from noria.conversion.convert import convert
from noria.conversion.export import export
from noria.conversion.rules import same_bytes

GOLDEN = Path(__file__).parent / "golden"
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
CASES = {
    "model": ("RoFormerModel", {}),
    "masked": ("RoFormerForMaskedLM", {}),
    "embedding": ("RoFormerForMaskedLM", {"embedding_size": 16, "layer_norm_eps": 1e-5}),
    "untied": ("RoFormerForMaskedLM", {"tie_word_embeddings": False}),
    "causal": ("RoFormerForCausalLM", {"is_decoder": True, "eos_token_id": 3}),
    "values": ("RoFormerForMaskedLM", {"rotary_value": True, "hidden_act": "silu"}),
    "gelu_new": ("RoFormerForMaskedLM", {"hidden_act": "gelu_new", "type_vocab_size": 3}),
    "tokens": ("RoFormerForTokenClassification", {"num_labels": 5}),
    "labels": ("RoFormerForTokenClassification", {"id2label": {0: "O", 1: "B", 2: "I"}}),
    "answers": ("RoFormerForQuestionAnswering", {}),
    "sequence": ("RoFormerForSequenceClassification", {"num_labels": 3}),
    "sequence, relu": ("RoFormerForSequenceClassification", {"num_labels": 2, "hidden_act": "relu"}),
    "choice": (
        "RoFormerForMultipleChoice",
        {"summary_type": "first", "summary_use_proj": True, "summary_activation": "tanh"},
    ),
}


def make(head: str, **options):
    """A model of transformers with random weights, none of which is 0 or 1."""
    torch.manual_seed(0)
    model = getattr(transformers, head)(RoFormerConfig(**SIZES | options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.normal_(std=0.3).add_(0.5 if "LayerNorm.weight" in name else 0.0)
    return model


def inputs_of(model) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    shape = (2, 3, 9) if "MultipleChoice" in type(model).__name__ else (3, 9)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[-1, ..., 6:] = 0
    types = torch.zeros_like(mask)
    types[0, ..., 4:] = 1
    return {"input_ids": torch.randint(1, 61, shape), "attention_mask": mask, "token_type_ids": types}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_heads_of_transformers_go_both_ways(case, tmp_path):
    head, options = CASES[case]
    original = make(head, **options)
    original.save_pretrained(tmp_path / "source")
    convert("transformers", tmp_path / "source", tmp_path / "model")
    model = getattr(noria, f"Noria{head}").from_pretrained(tmp_path / "model").eval()
    inputs = inputs_of(original)
    compare(model, original, inputs)
    assert model.config.id2label == original.config.id2label or "Classification" not in head
    export("transformers", tmp_path / "model", tmp_path / "back")
    same_folder(tmp_path / "source", tmp_path / "back")
    for parameter in {id(p): p for p in model.parameters()}.values():
        parameter.mul_(1.1)
    model.save_pretrained(tmp_path / "model")
    export("transformers", tmp_path / "model", tmp_path / "trained")
    compare(model, getattr(transformers, head).from_pretrained(tmp_path / "trained").eval(), inputs)


def compare(model, original, inputs: dict[str, torch.Tensor]) -> None:
    ours, theirs = model(**inputs), original(**inputs)
    for name in ("last_hidden_state", "logits", "start_logits", "end_logits"):
        if getattr(theirs, name, None) is not None:
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=5e-5)


def same_folder(one: Path, other: Path) -> None:
    assert {file.name for file in one.iterdir()} == {file.name for file in other.iterdir()}
    for file in one.iterdir():
        if file.suffix in {".safetensors", ".bin"}:
            before, after = tensors_in(file), tensors_in(other / file.name)
            assert before.keys() == after.keys()
            assert all(same_bytes(before[name], after[name]) for name in before)
        else:
            assert file.read_bytes() == (other / file.name).read_bytes()


def tensors_in(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def test_a_folder_without_the_word_embedding_has_it_as_the_decoder(tmp_path):
    """Tied tensors are stored once, under either name, by older versions."""
    make("RoFormerForMaskedLM").save_pretrained(tmp_path / "source")
    state = load_file(tmp_path / "source" / "model.safetensors")
    state["cls.predictions.decoder.weight"] = state.pop("roformer.embeddings.word_embeddings.weight")
    state["cls.predictions.decoder.bias"] = state.pop("cls.predictions.bias")
    save_file(state, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    convert("transformers", tmp_path / "source", tmp_path / "model")
    model = noria.NoriaRoFormerForMaskedLM.from_pretrained(tmp_path / "model")
    assert torch.equal(model.model.embed_tokens.weight, state["cls.predictions.decoder.weight"])
    assert torch.equal(model.lm_head.decoder.bias, state["cls.predictions.decoder.bias"])
    export("transformers", tmp_path / "model", tmp_path / "back")
    same_folder(tmp_path / "source", tmp_path / "back")


@pytest.mark.parametrize(
    ("head", "options", "config", "message"),
    [
        ("RoFormerForMultipleChoice", {}, {}, "summary_type is 'last'"),
        ("RoFormerForCausalLM", {}, {}, "is_decoder is false"),
        ("RoFormerForMaskedLM", {}, {"add_cross_attention": True}, "add_cross_attention=True cannot be converted"),
        ("RoFormerForMaskedLM", {"hidden_act": "mish"}, {}, "hidden_act is 'mish', not one of"),
        ("RoFormerForMaskedLM", {}, {"num_attention_heads": 3}, "num_attention_heads is 3, which does not divide"),
        ("RoFormerForMaskedLM", {}, {"model_type": "bert"}, "model_type is 'bert'; transformers' models"),
        ("RoFormerForMaskedLM", {}, {"hidden_sise": 3}, "config names 'hidden_sise'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_counterpart_is_refused(head, options, config, message, tmp_path):
    make(head, **options).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=message) as raised:
        convert("transformers", tmp_path / "source", tmp_path / "model", config)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "model").exists()


def test_a_causal_model_that_was_not_told_so_is_made_one_on_request(tmp_path):
    make("RoFormerForCausalLM").save_pretrained(tmp_path / "source")
    convert("transformers", tmp_path / "source", tmp_path / "model", {"is_decoder": True})
    assert not noria.NoriaRoFormerForCausalLM.from_pretrained(tmp_path / "model").config.bidirectional
    convert("transformers", tmp_path / "source", tmp_path / "masked", {"architectures": "RoFormerForMaskedLM"})
    assert noria.NoriaRoFormerForMaskedLM.from_pretrained(tmp_path / "masked").config.bidirectional


def test_a_changed_table_of_positions_is_noticed(tmp_path):
    make("RoFormerForMaskedLM").save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    state = load_file(path)
    state["roformer.encoder.embed_positions.weight"][3, 1] += 0.1
    save_file(state, path, {"format": "pt"})
    with pytest.raises(ValueError, match="does not hold the sines and cosines"):
        convert("transformers", tmp_path / "source", tmp_path / "model")


def test_the_vocabulary_of_a_tokenizer_json_becomes_our_tokenizer(tmp_path):
    make("RoFormerForMaskedLM").save_pretrained(tmp_path / "source")
    shutil.copy(GOLDEN / "roformer_v1" / "vocab.txt", tmp_path / "vocab.txt")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "source")
    assert not (tmp_path / "source" / "vocab.txt").exists()
    convert("transformers", tmp_path / "source", tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("一丁七").input_ids == [2, 5, 6, 8, 3]
    export("transformers", tmp_path / "model", tmp_path / "back")
    same_folder(tmp_path / "source", tmp_path / "back")


def junnyu_state(case: str) -> dict[str, torch.Tensor]:
    """The golden checkpoint of bert4keras under the names of the package `roformer`."""
    state = {}
    for name, tensor in read_bundle(GOLDEN / case / "bert_model.ckpt.index").tensors.items():
        name = re.sub(r"layer_(\d+)", r"layer.\1", name).replace("bert/", "roformer.", 1).replace("/", ".")
        name = name.replace("roformer.encoder.embedding_hidden_mapping_in", "roformer.embeddings_project")
        name = name.replace("output_bias", "bias").replace("gamma", "weight").replace("beta", "bias")
        name = f"{name}.weight" if name.endswith("_embeddings") else name
        state[name.replace("kernel", "weight")] = (
            tensor.t().contiguous() if name.endswith("kernel") else tensor.clone()
        )
    state["cls.predictions.decoder.weight"] = state["roformer.embeddings.word_embeddings.weight"]
    if "cls.predictions.bias" in state:
        state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    return state


JUNNYU = {
    "roformer_v1": {"architectures": ["RoFormerForMaskedLM"]},
    "roformer_v1_embed": {"architectures": ["RoFormerForMaskedLM"], "embedding_size": 16},
    "roformer_v2": {"norm_type": "rms_norm", "use_bias": False, "hidden_act": "relu"},
    "roformer_gpt": {"architectures": ["RoFormerForCausalLM"], "is_decoder": True},
    "roformer_sim": {"architectures": ["RoFormerForCausalLM"], "is_decoder": True, "pooler_activation": "linear"},
}


@pytest.mark.parametrize("case", JUNNYU)
def test_the_package_roformer_says_the_same_as_bert4keras(case, tmp_path):
    source, state = tmp_path / case, junnyu_state(case)
    source.mkdir()
    torch.save(state, source / "pytorch_model.bin")
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512}
    config = {"model_type": "roformer", "hidden_act": "gelu"} | SIZES | dropout | JUNNYU[case]
    (source / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / case / "vocab.txt", source / "vocab.txt")
    convert("junnyu", source, tmp_path / "model")
    convert("bert4keras", GOLDEN / case, tmp_path / "other")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "other"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for file in ("config.json", "tokenizer.json"):
        assert (tmp_path / "model" / file).read_text() == (tmp_path / "other" / file).read_text()
    export("junnyu", tmp_path / "model", tmp_path / "back")
    same_folder(source, tmp_path / "back")


def junnyu_folder(path: Path, state: dict[str, torch.Tensor], **changes) -> Path:
    path.mkdir()
    torch.save(state, path / "pytorch_model.bin")
    (path / "config.json").write_text(json.dumps({"model_type": "roformer"} | SIZES | changes))
    return path


def test_small_models_of_electra_keep_their_heads_beside(tmp_path):
    options = {"embedding_size": 16, "rotary_value": True}
    state = {f"roformer.{name}": tensor for name, tensor in make("RoFormerModel", **options).state_dict().items()}
    heads = {
        "discriminator_predictions.dense.weight": torch.randn(32, 32),
        "discriminator_predictions.dense.bias": torch.randn(32),
        "discriminator_predictions.dense_prediction.weight": torch.randn(1, 32),
        "discriminator_predictions.dense_prediction.bias": torch.randn(1),
    }
    source = junnyu_folder(tmp_path / "roformer_small_discriminator", state | heads, **options)
    convert("junnyu", source, tmp_path / "model")
    model = noria.NoriaRoFormerModel.from_pretrained(tmp_path / "model")
    assert model.config.rotary_value
    extras = json.loads((tmp_path / "model" / "conversion.json").read_text())["extras"]
    assert set(extras) == {*heads, "roformer.encoder.embed_positions.weight"}
    export("junnyu", tmp_path / "model", tmp_path / "back")
    same_folder(source, tmp_path / "back")


def test_a_repository_of_the_hub_goes_by_its_own_name(tmp_path, monkeypatch):
    snapshot = junnyu_folder(tmp_path / "0123abcd", junnyu_state("roformer_sim"))
    name = "junnyu/roformer_chinese_sim_char_base"
    monkeypatch.setattr("noria.conversion.source.snapshot_download", {name: str(snapshot)}.__getitem__)
    model = noria.NoriaRoFormerForCausalLM.from_pretrained(convert("junnyu", name, tmp_path / "model"))
    assert model.config.unilm


def test_a_sim_model_is_told_by_its_name_and_gau_alpha_refused(tmp_path):
    source = junnyu_folder(tmp_path / "roformer_chinese_sim_char_base", junnyu_state("roformer_sim"))
    config = noria.NoriaRoFormerForCausalLM.from_pretrained(convert("junnyu", source, tmp_path / "model")).config
    assert (config.unilm, config.pooler) == (True, "linear")
    gated = {"gau_alpha.encoder.layer.0.gau.i_dense.weight": torch.ones(2, 2)}
    source = junnyu_folder(tmp_path / "chinese_GAU-alpha-char_L-24_H-768", gated)
    with pytest.raises(ValueError, match="it is a GAU-alpha"):
        convert("junnyu", source, tmp_path / "gau")
    with pytest.raises(ValueError, match="of the package `roformer`"):
        convert("transformers", tmp_path / "roformer_chinese_sim_char_base", tmp_path / "other")
