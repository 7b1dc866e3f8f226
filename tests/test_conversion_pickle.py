"""Checkpoints are read without running anything in them, and give clear errors when they are damaged."""

import argparse
import collections
import contextlib
import os
import pickle
import random
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy
import pytest
import torch

from noria.conversion.checkpoint import read_checkpoint
from noria.conversion.layout import Encoder, decode
from noria.conversion.rules import same_bytes
from noria.conversion.symbols import Namespace, Opaque, mapping, plain
from noria.conversion.torch_file import read_torch

COMMON = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.uint8,
    torch.bool,
)
# torch's old container has no storages of the newest types.
CONTAINERS = [(dtype, zipped) for dtype in COMMON for zipped in (True, False)]
CONTAINERS += [(torch.float8_e4m3fn, True), (torch.uint16, True)]


def read(content, tmp_path: Path, **options):
    path = tmp_path / "file.pt"
    torch.save(content, path, **options)
    return read_torch(path)


def storage_of(tensor: torch.Tensor) -> torch.storage.TypedStorage:
    return torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)


class Calls:
    """Unpickles by calling `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def strangers(monkeypatch):
    """Classes of packages that are not installed, for the time of a pickle."""

    def make(module: str, *names: str) -> types.ModuleType:
        made = types.ModuleType(module)
        for name in names:
            setattr(made, name, type(name, (), {"__module__": module}))
        monkeypatch.setitem(sys.modules, module.partition(".")[0], types.ModuleType(module.partition(".")[0]))
        monkeypatch.setitem(sys.modules, module, made)
        return made

    return make


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(("dtype", "zipped"), CONTAINERS, ids=str)
def test_tensors_come_back_bit_by_bit(dtype, protocol, zipped, tmp_path):
    whole = torch.randint(0, 2, (4, 6)).to(dtype)
    content = {"whole": whole, "view": whole[1:3, ::2].t(), "scalar": whole[0, 0].clone(), "none": whole[:0].clone()}
    result = read(content, tmp_path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert result.container == ("zip" if zipped else "legacy")
    assert result.refused == set()
    for name, tensor in content.items():
        assert same_bytes(result.content[name], tensor), name
    assert result.content["view"].untyped_storage().data_ptr() == result.content["whole"].untyped_storage().data_ptr()


def test_plain_values_come_back(tmp_path):
    ordered = collections.OrderedDict(b=1, a=2)
    ordered._metadata = {"version": 1}
    content = {
        "numbers": [0, -1, 2**70, 1.5, float("-inf"), 1 + 2j, True, None],
        "texts": ("é", b"\x00\xff", bytearray(b"ab")),
        "sets": {frozenset({1, 2}): {3}},
        "ordered": ordered,
        "counted": collections.defaultdict(list, x=[1]),
        "numpy": numpy.float32(0.1),
        "array": numpy.arange(6, dtype=numpy.float64).reshape(2, 3),
        "torch": (torch.float16, torch.Size([2, 3]), torch.device("cpu")),
        "arguments": argparse.Namespace(width=3, name="x"),
    }
    result = read(content, tmp_path).content
    for name in ("numbers", "texts", "sets", "ordered", "counted", "torch"):
        assert result[name] == content[name]
    assert result["ordered"].attributes == {"_metadata": {"version": 1}}
    assert result["numpy"] == content["numpy"]
    assert torch.equal(result["array"].tensor, torch.from_numpy(content["array"]))
    assert plain(result["arguments"]) == Namespace(width=3, name="x")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["value", "key", "state", "hook"])
def test_nothing_in_a_file_is_run(where, zipped, protocol, tmp_path):
    trap = tmp_path / "sprung"
    evil = [
        Calls(os.system, f"touch {trap}"),
        Calls(eval, f"open({str(trap)!r}, 'w').close()"),
        Calls(exec, f"open({str(trap)!r}, 'w').close()"),
        Calls(Path.touch, trap),
        Calls(torch.load, str(trap)),
    ]
    weight = torch.ones(2)
    if where == "hook":
        weight = Calls(torch._utils._rebuild_tensor_v2, storage_of(weight), 0, (2,), (1,), True, evil[0])
    content = {"model": {"weight": weight}, "value": evil if where == "value" else 0}
    if where == "key":
        content[evil[0]] = evil[1]
    if where == "state":
        content["state"] = Stateful(evil)
    result = read(content, tmp_path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert not trap.exists()
    assert torch.equal(result.content["model"]["weight"], torch.ones(2))
    assert any(name.split(".")[0] in ("posix", "nt", "os") and name.endswith("system") for name in result.refused)


class Stateful:
    def __init__(self, inside):
        self.inside = inside


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'touch %s'\ntR.",
        b"(S'touch %s'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch %s'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'touch %s'\ntR.",
        b'\x80\x02cbuiltins\neval\n(S\'__import__("os").system("touch %s")\'\ntR.',
        b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'touch %s'\ntR.",
        b"\x80\x02cos\nsystem\n(S'touch %s'\nt\x81.",
        b"\x80\x02ccollections\nOrderedDict\n)R}S'__reduce__'\ncos\nsystem\nsb(S'touch %s'\ntR0N.",
    ],
    ids=["reduce", "inst", "obj", "stack_global", "eval", "getattr", "newobj", "build"],
)
def test_hand_written_pickles_run_nothing(code, tmp_path):
    trap = tmp_path / "sprung"
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("file/data.pkl", code.replace(b"%s", str(trap).encode()))
    try:
        result = read_torch(path)
        assert result.content is None or isinstance(result.content, Opaque)
        assert result.refused
    except ValueError:
        pass
    assert not trap.exists()


def test_unknown_classes_are_named_and_not_imported(strangers, tmp_path, monkeypatch):
    callbacks = strangers("lightning_of_old.callbacks", "ModelCheckpoint", "Monitor")
    best = callbacks.ModelCheckpoint()
    best.score = torch.ones(1)
    torch.save(
        {"state_dict": {"w": torch.ones(2)}, "callbacks": {callbacks.Monitor: {"lr": 1}, "best": best}},
        tmp_path / "x.ckpt",
    )
    monkeypatch.delitem(sys.modules, "lightning_of_old.callbacks")
    checkpoint = read_checkpoint([tmp_path / "x.ckpt"], ["state_dict"])
    assert "lightning_of_old.callbacks" not in sys.modules
    assert list(checkpoint.state) == ["w"]
    assert checkpoint.refused == {"lightning_of_old.callbacks.ModelCheckpoint", "lightning_of_old.callbacks.Monitor"}


def test_omegaconf_is_read_without_omegaconf(strangers, tmp_path, monkeypatch):
    dicts, nodes = strangers("omegaconf.dictconfig", "DictConfig"), strangers("omegaconf.nodes", "AnyNode")
    inner, outer, leaf = dicts.DictConfig(), dicts.DictConfig(), nodes.AnyNode()
    leaf.__dict__ |= {"_val": 48, "_parent": inner}
    inner.__dict__ |= {"_content": {"decoder_embed_dim": leaf}, "_parent": outer}
    outer.__dict__ |= {"_content": {"model": inner}, "_parent": None}
    torch.save({"cfg": outer, "model": {"w": torch.ones(1)}}, tmp_path / "x.pt")
    for name in ("omegaconf.dictconfig", "omegaconf.nodes"):
        monkeypatch.delitem(sys.modules, name)
    checkpoint = read_checkpoint([tmp_path / "x.pt"], ["model"])
    settings = mapping(mapping(checkpoint.content["cfg"])["model"])
    assert {key: plain(value) for key, value in settings.items()} == {"decoder_embed_dim": 48}
    assert checkpoint.files[0]["layout"]["dict"]["cfg"] == {"dict": {"model": {"dict": {"decoder_embed_dim": 48}}}}
    assert checkpoint.refused == set()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_truncation_is_an_error_that_names_the_file(zipped, tmp_path):
    path = tmp_path / "whole.pt"
    torch.save({"w": torch.arange(40.0), "x": [1, "two"]}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    cut = tmp_path / "cut.pt"
    for length in {0, 1, 4, 20, *range(50, len(data), 37), len(data) - 1}:
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.pt is not a readable torch file"):
            read_torch(cut)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_pickles_give_value_errors_and_nothing_else(zipped, tmp_path):
    source, damaged = tmp_path / "whole.pt", tmp_path / "damaged.pt"
    content = {"model": {"w": torch.ones(3, 2)}, "rest": [{1, 2}, (1j, b"x"), 2**80, argparse.Namespace(a=1)]}
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    draw = random.Random(0)
    for _ in range(300):
        if zipped:
            with zipfile.ZipFile(source) as whole, zipfile.ZipFile(damaged, "w") as archive:
                for name in whole.namelist():
                    data = whole.read(name)
                    archive.writestr(name, mutated(data, draw) if name.endswith("data.pkl") else data)
        else:
            damaged.write_bytes(mutated(source.read_bytes(), draw))
        with contextlib.suppress(ValueError):
            read_checkpoint([damaged], ["model"])


def mutated(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3))):
        place = draw.randrange(len(changed))
        if draw.random() < 0.5:
            changed[place] = draw.randrange(256)
        else:
            changed[place:place] = bytes([draw.choice(b"Rbo0(tl}]su.Qa2\x81\x85\x86\x87e\x93\x94\x8f\x90")])
    return bytes(changed)


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "whole.pt")
    bomb = zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match="is compressed"):
        read_torch(tmp_path / "bomb.pt")


def test_a_flipped_byte_in_a_zip_is_found(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"w": torch.full((64,), 3.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 3.0) * 8) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not a readable torch file"):
        read_torch(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, this is text", "neither a zip archive nor a torch pickle"),
        (pickle.dumps({"w": 1}), "torch.save did not write it"),
        (b"PK\x03\x04 cut", "truncated"),
    ],
)
def test_other_files_are_told_apart(content, message, tmp_path):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_torch(tmp_path / "file.pt")


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    storage = storage_of(torch.ones(4))
    for size, stride, offset in [
        ((5,), (1,), 0),
        ((2, 2), (3, 1), 1),
        ((2,), (1,), 3),
        ((2,), (-1,), 1),
        ((1,), (1,), -1),
    ]:
        reaching = Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})
        with pytest.raises(ValueError, match="beyond its storage"):
            read({"w": reaching}, tmp_path)


def test_the_layout_gives_the_same_structure_back():
    shared = torch.arange(3.0)
    content = {
        "a": [1, (2, {"x": shared, 5: "five"}), float("nan")],
        "b": {"w": shared, "p": torch.nn.Parameter(torch.ones(2))},
        "c": {"bytes": b"\x01", "complex": 1j, "dtype": torch.bfloat16, "size": torch.Size([1]), "set": {1, 2}},
        "n": Namespace(x=1),
    }
    encoder = Encoder(("b",))
    layout = encoder.encode(content)
    assert set(encoder.state) == {"w", "p"}
    assert set(encoder.others) == {"a/1/1/x"}
    back = decode(layout, encoder.state | encoder.others)
    assert back["a"][:1] == [1]
    assert back["a"][1][1][5] == "five"
    assert back["b"]["w"] is back["a"][1][1]["x"]
    assert isinstance(back["b"]["p"], torch.nn.Parameter)
    assert back["c"] == content["c"]
    assert back["n"] == argparse.Namespace(x=1)


def test_a_container_that_holds_itself_does_not_hang(tmp_path):
    loop: list = [1]
    loop.append(loop)
    torch.save({"model": {"w": torch.ones(1)}, "loop": loop}, tmp_path / "x.pt")
    checkpoint = read_checkpoint([tmp_path / "x.pt"], ["model"])
    assert checkpoint.files[0]["layout"]["dict"]["loop"] == [1, {"refused": "a container that holds itself"}]


def test_optimizer_tensors_stay_behind_and_others_come_along(tmp_path):
    content = {
        "model": {"w": torch.ones(1)},
        "ema": {"w": torch.zeros(1)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(1)}}}],
        "last_optimizer_state": None,
    }
    torch.save(content, tmp_path / "x.pt")
    checkpoint = read_checkpoint([tmp_path / "x.pt"], ["model"])
    assert set(checkpoint.state) == {"w"}
    assert set(checkpoint.others) == {"ema/w"}
    assert checkpoint.dropped == {"optimizer_states": "optimizer state"}
