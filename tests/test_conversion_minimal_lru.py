"""Classifiers of minimal-LRU, read from Flax's files without Flax, give what the original gave, and come back."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from noria import NoriaLRUForSequenceClassification, NoriaLRUModel
from noria.conversion import msgpack_file
from noria.conversion.convert import convert
from noria.conversion.export import export
from noria.conversion.msgpack_file import read_msgpack, write_msgpack
from noria.conversion.msgpack_values import Extension, Unpacker, pack

GOLDEN = Path(__file__).parent / "golden"
CASES = ["lru", "lru_batchnorm", "lru_batchnorm_post", "lru_nopool", "lru_prenorm"]
FILE = "checkpoint.msgpack"


def converted(case: str, folder: Path):
    """case.json, what was recorded, and the classifier."""
    about = json.loads((GOLDEN / case / "case.json").read_text())
    convert("minimal_lru", GOLDEN / case, folder, about["config"])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return about, load_file(GOLDEN / case / "inputs_outputs.safetensors"), model


def close(found: torch.Tensor, expected: torch.Tensor, about: dict) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=about["tolerance"]["expected_abs"])


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_the_original_gave(case, tmp_path):
    about, recorded, model = converted(case, tmp_path / "model")
    assert isinstance(model, NoriaLRUForSequenceClassification)
    recurrences: list[torch.Tensor] = []
    for block in model.model.layers:
        block.mixer.register_forward_hook(lambda module, inputs, outputs: recurrences.append(outputs[0]))
    outputs = model(inputs_embeds=recorded["x"], output_hidden_states=True)
    close(outputs.logits, recorded["logits"], about)
    close(outputs.logits.log_softmax(-1), recorded["log_probs"], about)
    names = ["encoder_input_projection", "hidden_states.1", "hidden_states.2"]
    for found, name in zip(outputs.hidden_states, names, strict=True):
        close(found, recorded[name], about)
    for layer, found in enumerate(recurrences):
        close(found, recorded[f"lru_out.{layer}"], about)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_padding_and_cuts_change_nothing(case, tmp_path):
    about, recorded, model = converted(case, tmp_path / "model")
    x = recorded["x"]
    padded = torch.cat((x[:, :4], torch.full_like(x[:, :2], 9.0), x[:, 4:], torch.full_like(x[:, :1], 9.0)), 1)
    mask = torch.ones(padded.shape[:2], dtype=torch.int64)
    mask[:, 4:6], mask[:, -1] = 0, 0
    logits = model(inputs_embeds=padded, attention_mask=mask).logits
    close(logits[:, mask[0].bool()] if logits.dim() == 3 else logits, recorded["logits"], about)
    cache, states = None, []
    for part in x.split([5, 1, 11], dim=1):
        outputs = model.model(inputs_embeds=part, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        states.append(outputs.last_hidden_state)
    close(torch.cat(states, 1), recorded["hidden_states.2"], about)


@pytest.mark.parametrize("case", CASES)
def test_it_comes_back_byte_for_byte(case, tmp_path):
    _, _, model = converted(case, tmp_path / "model")
    export("minimal_lru", tmp_path / "model", tmp_path / "back")
    assert (tmp_path / "back" / FILE).read_bytes() == (GOLDEN / case / FILE).read_bytes()
    model.save_pretrained(tmp_path / "model")
    export("minimal_lru", tmp_path / "model", tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() == (GOLDEN / case / FILE).read_bytes()


def tree(case: str = "lru") -> dict:
    return Unpacker((GOLDEN / case / FILE).read_bytes()).whole()


def write(folder: Path, content: dict, name: str = FILE) -> Path:
    folder.mkdir()
    (folder / name).write_bytes(pack(content))
    return folder / name


def test_parameters_alone_a_train_state_and_an_encoder(tmp_path):
    """Whatever of it is saved, under whatever name the file has."""
    whole, config = tree(), {"prenorm": False, "pooling": "mean"}
    scalar = Extension(3, pack([[], "int32", struct.pack("<i", 7)]))
    train_state = {"step": scalar, "opt_state": {"0": {"mu": whole["params"]}}, **whole}
    weights = []
    for name, content in (("bare", whole["params"]), ("state", train_state), ("variables", whole)):
        source = write(tmp_path / name, content, f"checkpoint_{name}")
        convert("minimal_lru", source, tmp_path / f"{name}-model", config)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"{name}-model")
        weights.append(model.state_dict())
        export("minimal_lru", tmp_path / f"{name}-model", tmp_path / f"{name}-back")
        back = (tmp_path / f"{name}-back" / source.name).read_bytes()
        assert back == (pack(content | {"opt_state": None}) if name == "state" else source.read_bytes())
    assert all(torch.equal(value, state[name]) for state in weights for name, value in weights[0].items())
    source = write(tmp_path / "encoder", {"params": whole["params"]["encoder"]})
    encoder = NoriaLRUModel.from_pretrained(
        convert("minimal_lru", source, tmp_path / "encoder-model", {"prenorm": False})
    )
    assert torch.equal(encoder.state_dict()["layers.0.mixer.D"], weights[0]["model.layers.0.mixer.D"])
    export("minimal_lru", tmp_path / "encoder-model", tmp_path / "encoder-back")
    assert (tmp_path / "encoder-back" / FILE).read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "does not say prenorm, pooling"),
        ({"prenorm": False, "multidim": 2}, "multidim=2 cannot be converted"),
        ({"prenorm": False, "pooling": "max"}, "pooling is 'max', not one of"),
        ({"prenorm": False, "norm": "batch"}, "norm is 'batch' in the config, but the tensors say 'layer'"),
        ({"d_hidden": 13}, "d_hidden is 13 in the config, but the tensors say 12"),
        ({"d_hiden": 12}, "did you mean d_hidden"),
    ],
)
def test_wrong_settings_are_named(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert("minimal_lru", GOLDEN / "lru", tmp_path / "model", config)
    assert not (tmp_path / "model").exists()


def test_other_models_and_missing_tensors_are_named(tmp_path):
    config = {"prenorm": False}
    with pytest.raises(ValueError, match="not a model of minimal-LRU"):
        convert("minimal_lru", write(tmp_path / "a", {"params": tree()["params"]["decoder"]}), tmp_path / "x", config)
    content = tree()
    del content["params"]["encoder"]["layers_1"]["seq"]["D"]
    with pytest.raises(ValueError, match=r"lacks 1 tensors: params\.encoder\.layers_1\.seq\.D"):
        convert("minimal_lru", write(tmp_path / "b", content), tmp_path / "x", config)
    content = tree("lru_batchnorm")
    del content["batch_stats"]["encoder"]["layers_0"]["normalization"]["var"]
    with pytest.raises(ValueError, match=r"lacks 1 tensors: batch_stats\.encoder\.layers_0\.normalization\.var"):
        convert("minimal_lru", write(tmp_path / "c", content), tmp_path / "x", config)


@pytest.mark.parametrize("left", [0, 1, 7, 60, 1000, 5873])
def test_a_file_that_is_cut_off_is_named(left, tmp_path):
    file = shutil.copy(GOLDEN / "lru" / FILE, tmp_path / FILE)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"checkpoint\.msgpack is not a readable msgpack file.*cut off"):
        read_msgpack(file)


ARRAY = Extension(1, pack([[2], "float32", bytes(8)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xc1", "byte 0 is 0xc1, which begins no value"),
        (b"\x01\x02", "1 bytes follow its end at 1"),
        (b"\x81\xa1\xff\xc0", "is not UTF-8"),
        (b"\x81\x90\xc0", "is list, not text or a number"),
        (b"\x91" * 200 + b"\xc0", "nested too deeply"),
        (pack([1]), "it holds list, not a map"),
        (pack({"a": Extension(1, pack([[2], "float32", bytes(7)]))}), "'a' of shape .* has 7 bytes"),
        (pack({"a": Extension(1, pack([[2], "float31", bytes(8)]))}), "'a' has dtype 'float31'"),
        (pack({"a": Extension(1, pack([2]))}), "'a' is not a shape, a dtype and bytes"),
        (pack({"a": Extension(1, pack([[-1], "int8", b""]))}), "'a' is not a shape, a dtype and bytes"),
        (pack({"a": Extension(5, b"")}), "'a' is of extension type 5"),
        (pack({"a": {"b": ARRAY}, "a.b": ARRAY}), "two tensors are called 'a.b'"),
        (pack({"a": {msgpack_file.CHUNKED: True, "shape": {"0": 3}, "chunks": {"0": ARRAY}}}), "chunks of 'a'"),
        (pack({"a": {msgpack_file.CHUNKED: True, "shape": {"0": 2}, "chunks": {"1": ARRAY}}}), "chunks of 'a'"),
    ],
)
def test_damage_is_named(content, message, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_msgpack(tmp_path / FILE)


NUMBERS = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1]
NUMBERS += [-1, -32, -33, -128, -129, -(2**15), -(2**15) - 1, -(2**31) - 1, -(2**63)]


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0.1, float("inf"), [], {}, *NUMBERS),
        *("x" * size for size in (0, 31, 32, 255, 256, 65536)),
        *(bytes(size) for size in (0, 255, 256, 65536)),
        *([None] * size for size in (15, 16, 65536)),
        *({str(i): i for i in range(size)} for size in (15, 16, 65536)),
        *(Extension(-3, bytes(size)) for size in (1, 2, 3, 4, 8, 15, 16, 255, 256, 65536)),
    ],
    ids=lambda value: f"{type(value).__name__}-{len(value) if hasattr(value, '__len__') else value}",
)
def test_values_come_back(value):
    packed = pack(value)
    assert Unpacker(packed).whole() == value
    with pytest.raises(ValueError, match="cut off"):
        Unpacker(packed[:-1]).whole()


def test_bytes_of_the_format():
    """Written out by hand from the specification."""
    assert pack({"a": [1, -1, 300], "b": None}) == b"\x82\xa1a\x93\x01\xff\xcd\x01\x2c\xa1b\xc0"
    assert pack(0.5) == b"\xcb\x3f\xe0\0\0\0\0\0\0"
    assert pack(-200) == b"\xd1\xff\x38"
    assert Unpacker(b"\xca\x3f\0\0\0").whole() == 0.5
    with pytest.raises(TypeError, match="msgpack has no set"):
        pack(set())
    for number in (2**64, -(2**63) - 1):
        with pytest.raises(OverflowError, match="64 bits"):
            pack(number)


def test_large_arrays_are_cut_into_chunks(tmp_path, monkeypatch):
    """As Flax cuts them, at a smaller size."""
    monkeypatch.setattr(msgpack_file, "MOST_BYTES", 16)
    values = torch.arange(10, dtype=torch.float32).reshape(2, 5)
    layout = {"map": [["a", {"tensor": "a"}], ["b", {"complex": [1.0, -2.0]}], ["c", {"list": [1, {"bytes": "00"}]}]]}
    write_msgpack(tmp_path / FILE, layout, {"a": values})
    content = Unpacker((tmp_path / FILE).read_bytes()).whole()
    assert list(content["a"]) == [msgpack_file.CHUNKED, "shape", "chunks"]
    assert content["a"]["shape"] == {"0": 2, "1": 5}
    assert list(content["a"]["chunks"]) == ["0", "1", "2"]
    read = read_msgpack(tmp_path / FILE)
    assert torch.equal(read.tensors["a"], values)
    assert read.layout == layout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "bool", "complex64"])
def test_dtypes_and_empty_arrays(dtype, tmp_path):
    kind = getattr(torch, dtype)
    for value in (torch.ones(2, 3).to(kind), torch.ones(0, 3).to(kind), torch.ones(()).to(kind)):
        write_msgpack(tmp_path / FILE, {"map": [["a", {"tensor": "a"}]]}, {"a": value})
        found = read_msgpack(tmp_path / FILE).tensors["a"]
        assert found.dtype == kind
        assert torch.equal(found, value)
