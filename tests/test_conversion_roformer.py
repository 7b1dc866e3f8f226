"""RoFormer checkpoints of bert4keras give the original's numbers, say what they are, and come back byte by byte."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from noria.conversion.bundle import read_bundle
from noria.conversion.bundle_write import write_bundle
from noria.conversion.convert import convert
from noria.conversion.export import export
from noria.conversion.roformer_folder import check_name, level_of
from noria.conversion.rules import same_bytes
from noria.conversion.settings import Settings
from noria.modeling.roformer import NoriaRoFormerForCausalLM, NoriaRoFormerForMaskedLM, NoriaRoFormerModel

GOLDEN = Path(__file__).parent / "golden"
CASES = ["roformer_v1", "roformer_v1_embed", "roformer_v2", "roformer_gpt", "roformer_sim"]
CAUSAL = {"roformer_gpt", "roformer_sim"}
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_act": "gelu",
}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """golden(case) -> (case.json, recorded tensors, the converted folder)"""
    folder = tmp_path_factory.mktemp("golden")

    def load(case: str):
        if not (folder / case).exists():
            convert("bert4keras", GOLDEN / case, folder / case)
        about = json.loads((GOLDEN / case / "case.json").read_text())
        return about, load_file(GOLDEN / case / "inputs_outputs.safetensors"), folder / case

    return load


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_the_originals_hidden_states_and_logits(case, golden):
    about, recorded, folder = golden(case)
    model_class = AutoModelForCausalLM if case in CAUSAL else AutoModelForMaskedLM
    model = model_class.from_pretrained(folder).eval()
    inputs = {name: recorded[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    outputs = model(**inputs, output_hidden_states=True)
    expected = [recorded["embedding_output"], recorded["hidden_states.1"], recorded["hidden_states.2"]]
    assert len(outputs.hidden_states) == len(expected)
    for ours, original in zip((*outputs.hidden_states, outputs.logits), (*expected, recorded["logits"]), strict=True):
        torch.testing.assert_close(ours, original, rtol=0, atol=about["tolerance"]["fp32_abs"])


@torch.no_grad()
def test_sim_pools_and_sees_padding_as_the_original(golden):
    about, recorded, folder = golden("roformer_sim")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, mask, types = (recorded[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
    close = {"rtol": 0, "atol": about["tolerance"]["fp32_abs"]}
    pooled = model.model(ids, attention_mask=mask, token_type_ids=types).pooler_output
    torch.testing.assert_close(pooled, recorded["pooled"], **close)
    encoded = model.encode(ids, attention_mask=mask, token_type_ids=types)
    torch.testing.assert_close(encoded, recorded["pooled"] / recorded["pooled"].norm(dim=1, keepdim=True), **close)
    order = types.cumsum(1)
    visible = (order[:, None, :] <= order[:, :, None]) & mask[:, None, :].bool()
    positions = torch.arange(ids.shape[1])[None]
    logits = model(ids, attention_mask=visible[:, None], token_type_ids=types, position_ids=positions).logits
    torch.testing.assert_close(logits, recorded["logits"], **close)


@pytest.mark.parametrize("case", CASES)
def test_export_gives_every_file_back(case, golden, tmp_path):
    _, _, folder = golden(case)
    export("bert4keras", folder, tmp_path / "back")
    files = {file.name for file in (GOLDEN / case).iterdir()} - {"case.json", "inputs_outputs.safetensors"}
    assert {file.name for file in (tmp_path / "back").iterdir()} == files
    for name in files:
        assert (tmp_path / "back" / name).read_bytes() == (GOLDEN / case / name).read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_arguments_of_the_original_say_the_same_as_its_files(case, golden, tmp_path):
    about, _, folder = golden(case)
    for name in ("bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"):
        shutil.copy(GOLDEN / case / name, tmp_path / name)
    convert("bert4keras", tmp_path / "bert_model.ckpt", tmp_path / "model", about["config"] | about["build_arguments"])
    ours, other = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "model", folder))
    special = {"bos_token_id", "eos_token_id"}
    assert {key: ours[key] for key in ours.keys() - special} == {key: other[key] for key in other.keys() - special}
    assert not (tmp_path / "model" / "tokenizer.json").exists()


def variables(version: int = 1, layers: int = 2, inner: int | None = None, pooler: bool = False, head: bool = True):
    """Random variables as bert4keras names them."""
    width, feed, words = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["vocab_size"]
    inner = inner or width
    dense = {}
    for layer in range(layers):
        stem = f"bert/encoder/layer_{layer}/"
        dense |= {f"{stem}attention/self/{name}": (width, inner) for name in ("query", "key", "value")}
        dense |= {f"{stem}attention/output/dense": (inner, width), f"{stem}intermediate/dense": (width, feed)}
        dense[f"{stem}output/dense"] = (feed, width)
    if pooler:
        dense["bert/pooler/dense"] = (width, width)
    norms = [stem for layer in range(layers) for stem in (f"layer_{layer}/attention/output", f"layer_{layer}/output")]
    norms = ["bert/embeddings", *(f"bert/encoder/{stem}" for stem in norms)]
    shapes = {"bert/embeddings/word_embeddings": (words, width), "bert/embeddings/token_type_embeddings": (2, width)}
    if version == 1 and head:
        dense["cls/predictions/transform/dense"] = (width, width)
        norms.append("cls/predictions/transform")
        shapes["cls/predictions/output_bias"] = (words,)
    shapes |= {f"{name}/kernel": shape for name, shape in dense.items()}
    if version == 1:
        shapes |= {f"{name}/bias": shape[1:] for name, shape in dense.items()}
        shapes |= {f"{name}/LayerNorm/{part}": (width,) for name in norms for part in ("beta", "gamma")}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    """folder(variables, name, config changes) -> the path of a folder as published"""

    def write(tensors, name: str = "source", shards=None, words=None, **changes) -> Path:
        path = tmp_path / name
        path.mkdir()
        write_bundle(path / "bert_model.ckpt", tensors, shards)
        (path / "bert_config.json").write_text(json.dumps(SIZES | changes))
        if words is None:
            shutil.copy(GOLDEN / "roformer_v1" / "vocab.txt", path / "vocab.txt")
        else:
            (path / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
        return path

    return write


def test_optimiser_slots_are_dropped_and_shards_come_back(folder, tmp_path):
    tensors = variables()
    slots = {
        f"{name}/{slot}": torch.zeros_like(tensor) for name, tensor in tensors.items() for slot in ("adam_m", "adam_v")
    }
    trained = tensors | slots | {"global_step": torch.tensor(7)}
    names = sorted(trained)
    source = folder(trained, shards=[names[::2], names[1::2]])
    convert("bert4keras", source, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["dropped"] == dict.fromkeys([*sorted(slots), "global_step"], "optimizer state")
    export("bert4keras", tmp_path / "model", tmp_path / "back")
    assert {file.name for file in (tmp_path / "back").iterdir()} == {file.name for file in source.iterdir()}
    back = read_bundle(tmp_path / "back" / "bert_model.ckpt.index").tensors
    assert back.keys() == tensors.keys()
    assert all(same_bytes(back[name], tensor) for name, tensor in tensors.items())


def test_without_a_head_the_bare_model_results(folder, tmp_path):
    convert("bert4keras", folder(variables(head=False)), tmp_path / "model")
    assert type(AutoModel.from_pretrained(tmp_path / "model")) is NoriaRoFormerModel
    assert AutoConfig.from_pretrained(tmp_path / "model").architectures == ["NoriaRoFormerModel"]
    convert("bert4keras", folder(variables(), "other"), tmp_path / "headless", {"with_mlm": False})
    record = json.loads((tmp_path / "headless" / "conversion.json").read_text())
    assert record["model_class"] == "NoriaRoFormerModel"
    assert all(name.startswith("cls/predictions/") for name in record["extras"])
    export("bert4keras", tmp_path / "headless", tmp_path / "back")
    before, after = (read_bundle(tmp_path / name / "bert_model.ckpt.index").tensors for name in ("other", "back"))
    assert before.keys() == after.keys()
    assert all(same_bytes(before[name], after[name]) for name in before)


def test_a_next_sentence_head_is_kept_and_makes_the_pooler_a_tanh(folder, tmp_path):
    sentence = {
        "cls/seq_relationship/output_weights": torch.randn(2, 32),
        "cls/seq_relationship/output_bias": torch.randn(2),
    }
    convert("bert4keras", folder(variables(pooler=True) | sentence), tmp_path / "model")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    assert model.config.pooler == "tanh"
    assert not model.config.unilm
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert set(record["extras"]) == set(sentence)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {"norm_eps": 1e-12, "dropout": 0.0, "pad_token_id": 0, "eos_token_id": None}),
        ({"layer_norm_eps": 1e-7}, {"norm_eps": 1e-7}),
        ({"epsilon": 1e-6}, {"norm_eps": 1e-6}),
        ({"hidden_dropout_prob": 0.1}, {"dropout": 0.1, "attention_dropout": 0.0}),
        ({"attention_probs_dropout_prob": 0.2}, {"dropout": 0.0, "attention_dropout": 0.2}),
        ({"dropout_rate": 0.3, "hidden_dropout_prob": 0.1}, {"dropout": 0.3}),
        ({"hidden_act": "swish"}, {"hidden_act": "silu"}),
        ({"hidden_act": "linear"}, {"hidden_act": "identity"}),
        ({"max_position": 1536}, {"max_position_embeddings": 1536}),
        ({"application": "lm"}, {"bidirectional": False, "unilm": False, "eos_token_id": 3, "bos_token_id": 2}),
        ({"application": "unilm"}, {"bidirectional": True, "unilm": True, "eos_token_id": 3}),
        ({"num_attention_heads": 2}, {"num_attention_heads": 2, "head_dim": 16}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, {"vocab_size": 61}),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_reach_the_configuration(options, fields, folder, tmp_path):
    convert("bert4keras", folder(variables()), tmp_path / "model", options)
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert {name: getattr(config, name) for name in fields} == fields


def test_heads_may_be_wider_than_their_share(folder, tmp_path):
    convert("bert4keras", folder(variables(inner=64), attention_head_size=16), tmp_path / "model")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    assert model.config.head_dim == 16
    assert model(torch.tensor([[2, 5, 3]])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({}, {"num_hidden_layers": 3}, "num_hidden_layers is 3 in the config, but the tensors say 2"),
        ({}, {"hidden_act": "mish"}, "hidden_act is 'mish', not one of"),
        ({}, {"hidden_act": ["gelu", "linear"]}, "gated feed-forward layers"),
        ({}, {"num_attention_heads": 5}, "num_attention_heads is 5, which does not divide 32"),
        ({}, {"residual_attention_scores": True}, "residual_attention_scores=True cannot be converted"),
        ({}, {"model": "roformer_v2"}, "model is 'roformer_v2', but the tensors are those of RoFormer v1"),
        ({}, {"model": "gau"}, "model is 'gau'"),
        ({}, {"with_pool": True}, "with_pool is stated, but there is no bert/pooler"),
        ({}, {"application": "seq2seq"}, "application is 'seq2seq', not one of"),
        ({}, {"heads": 4}, "config names 'heads', which neither bert4keras"),
        ({"bert/embeddings/token_type_embeddings": None}, {}, "it has no token types"),
        ({"bert/embeddings/position_embeddings": (512, 32)}, {}, "a BERT with learned positions"),
        ({"GAU_alpha/encoder/layer_0/gau/o_dense/kernel": (64, 32)}, {}, "it is a GAU-alpha"),
        ({"bert/embeddings/word_embeddings": None}, {}, "not a RoFormer of bert4keras: no bert/embeddings/word_emb"),
        ({"bert/encoder/layer_1/output/dense/bias": None}, {}, "lacks 1 tensors: bert/enc.*/dense/bias"),
        ({"bert/encoder/layer_0/gate": (3,)}, {}, "no rule for 1 tensors .*: bert/encoder/layer_0/gate"),
        ({"cls/predictions/output_bias": None}, {"with_mlm": True}, "there is no cls/predictions/output_bias"),
        ({"bert/encoder/layer_0/attention/self/value/kernel": (32, 64)}, {}, "attention_key_size 8 is not .*_size 16"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_foreign_or_contradictory_is_named(change, config, message, folder, tmp_path):
    tensors = variables() | {name: torch.randn(shape) for name, shape in change.items() if shape}
    source = folder({name: tensor for name, tensor in tensors.items() if change.get(name, ()) is not None})
    with pytest.raises(ValueError, match=message) as raised:
        convert("bert4keras", source, tmp_path / "model", config)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "model").exists()


def test_missing_settings_and_unreadable_files_are_named(folder, tmp_path):
    source = folder(variables(), "source")
    (source / "bert_config.json").unlink()
    with pytest.raises(ValueError, match="does not say num_attention_heads, hidden_act"):
        convert("bert4keras", source, tmp_path / "model")
    (source / "bert_config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        convert("bert4keras", source, tmp_path / "model")
    words = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")] + [chr(0x4E00 + i) for i in range(60)]
    with pytest.raises(ValueError, match=r"vocab\.txt holds 65 tokens, but the model only 61"):
        convert("bert4keras", folder(variables(), "long", words=words), tmp_path / "model")


CHARACTERS = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")] + [chr(0x4E00 + i) for i in range(50)]
WORDS = [
    *CHARACTERS[:20],
    "今天",
    "天气",
    "非常",
    "中国",
    "我们",
    "他们",
    "可以",
    "没有",
    "什么",
    "时候",
    "北京",
    "你们",
]
ENCODER = (NoriaRoFormerForMaskedLM, {"bidirectional": True, "unilm": False, "pooler": "none"})
SIM = (NoriaRoFormerForCausalLM, {"unilm": True, "pooler": "linear", "eos_token_id": 3, "type_vocab_size": 2})
PUBLISHED = {
    "chinese_roformer_L-12_H-768_A-12": (*ENCODER, "words"),
    "chinese_roformer_L-6_H-384_A-6": (*ENCODER, "words"),
    "chinese_roformer-char_L-12_H-768_A-12": (*ENCODER, "characters"),
    "chinese_roformer-char_L-6_H-384_A-6": (*ENCODER, "characters"),
    "chinese_roformer-gpt-char_L-12_H-768_A-12": (
        NoriaRoFormerForCausalLM,
        {"bidirectional": False, "unilm": False, "eos_token_id": 3},
        "characters",
    ),
    "chinese_roformer-sim-char_L-12_H-768_A-12": (*SIM, "characters"),
    "chinese_roformer-sim-char_L-6_H-384_A-6": (*SIM, "characters"),
    "chinese_roformer-sim-char-ft_L-12_H-768_A-12": (*SIM, "characters"),
    "chinese_roformer-sim-char-ft_L-6_H-384_A-6": (*SIM, "characters"),
    "chinese_roformer-v2-char_L-6_H-384_A-6": (*ENCODER, "characters"),
    "chinese_roformer-v2-char_L-12_H-768_A-12": (*ENCODER, "characters"),
    "chinese_roformer-v2-char_L-24_H-1024_A-16": (*ENCODER, "characters"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_need_no_flags(name, folder, tmp_path):
    """Each archive's name with the sizes of a tiny model in it."""
    model_class, fields, level = PUBLISHED[name]
    version = 2 if "-v2-" in name else 1
    tensors = variables(version, pooler="-sim-" in name)
    tiny = name.partition("_L-")[0] + "_L-2_H-32_A-4"
    source = folder(tensors, tiny, words=WORDS if level == "words" else CHARACTERS)
    convert("bert4keras", source, tmp_path / "model")
    auto = AutoModelForCausalLM if model_class is NoriaRoFormerForCausalLM else AutoModelForMaskedLM
    model = auto.from_pretrained(tmp_path / "model")
    assert type(model) is model_class
    assert {key: getattr(model.config, key) for key in fields} == fields
    assert model.config.version == version
    assert level_of(name) == level
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("我们可以").input_ids)
    assert tokens[1:-1] == (["我们", "可以"] if level == "words" else ["[UNK]"] * 4)
    export("bert4keras", tmp_path / "model", tmp_path / "back")
    back = read_bundle(tmp_path / "back" / "bert_model.ckpt.index").tensors
    assert all(same_bytes(back[key], tensor) for key, tensor in tensors.items())


def test_a_name_that_contradicts_its_content_is_refused(folder, tmp_path):
    source = folder(variables(), "chinese_roformer-v2-char_L-6_H-384_A-6")
    with pytest.raises(
        ValueError, match=r"num_hidden_layers is 2, .* says 6; hidden_size is 32, .*; num_att.* RoFormer v1"
    ):
        convert("bert4keras", source, tmp_path / "model")
    settings = Settings({}, {})
    settings.record["num_hidden_layers"] = {"value": 12}
    check_name(settings, "chinese_GAU-alpha-char_L-24_H-768", 2)
    assert settings.wrong == ["num_hidden_layers is 12, but the name 'chinese_GAU-alpha-char_L-24_H-768' says 24"]


@pytest.mark.parametrize("case", sorted(CAUSAL))
def test_models_that_write_stop_at_the_separator(case, golden):
    _, _, folder = golden(case)
    model = AutoModelForCausalLM.from_pretrained(folder)
    wanted = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_length": 512}
    assert {name: getattr(model.generation_config, name) for name in wanted} == wanted
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("一丁七万", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=5)
    assert prompt.input_ids.shape[1] < written.shape[1] <= prompt.input_ids.shape[1] + 5
