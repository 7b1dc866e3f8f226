"""TensorFlow's bundles: every byte comes back, and no damage passes for a tensor."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from struct import pack

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from noria.conversion.bundle import data_files, read_bundle
from noria.conversion.bundle_messages import DTYPES, Entry, Header, bytes_field, varint_field
from noria.conversion.bundle_write import write_bundle
from noria.conversion.checkpoint import read_checkpoint
from noria.conversion.convert import convert
from noria.conversion.crc32c import CHUNK, DEGREE, EXPONENTS, REFLECTED_POLYNOMIAL, by_bytes, crc32c, masked
from noria.conversion.export import export, write_file
from noria.conversion.raw_bytes import SAFETENSORS_DTYPES, same_bytes, write_safetensors
from noria.conversion.source import checkpoint_files, local
from noria.conversion.sstable import MAGIC, Block, read_block, read_table, write_table
from noria.conversion.varint import read_varint, write_varint

GOLDEN = Path(__file__).parent / "golden"
TENSORFLOW = GOLDEN / "tensorflow_bundles"
WHOLE = [index for index in sorted(GOLDEN.glob("*/*.index")) if index.stem not in ("slices", "strings")]
bundles = pytest.mark.parametrize("index", WHOLE, ids=[index.parent.name for index in WHOLE])


def state() -> dict[str, torch.Tensor]:
    """A few tensors, among them a scalar, an empty one, an unaligned one and a long name."""
    generator = torch.Generator().manual_seed(0)
    return {
        "bert/kernel": torch.randn(3, 5, generator=generator),
        "a/flag": torch.tensor([True, False, True]),
        "bert/unaligned": torch.randn(4, generator=generator, dtype=torch.float64),
        "global_step": torch.tensor(7),
        "void": torch.empty(0, 3),
        "x/" + "long/" * 60 + "é": torch.randn(2, generator=generator).bfloat16(),
    }


@pytest.fixture
def index(tmp_path) -> Path:
    """The index of `state()` as a bundle, alone in its folder."""
    (tmp_path / "source").mkdir()
    return write_bundle(tmp_path / "source" / "model.ckpt", state())


def data_of(index: Path) -> Path:
    return data_files(index)[0]


def rewrite(index: Path, **values: bytes) -> None:
    """Writes the index again, with right checksums; `header` stands for the empty key, other names for themselves."""
    pairs = dict(read_table(index.read_bytes()))
    pairs |= {b"" if name == "header" else name.encode(): value for name, value in values.items()}
    index.write_bytes(write_table(sorted(pairs.items())))


def refusal(index: Path, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as raised:
        read_bundle(index)
    assert "\n" not in str(raised.value)
    assert str(index.parent) in str(raised.value)
    return str(raised.value)


def outcome(index: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors, or the message of a documented error; any other error passes through."""
    try:
        return read_bundle(index).tensors, ""
    except (ValueError, FileNotFoundError) as error:
        return {}, str(error)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(same_bytes(one[name], other[name]) for name in one)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@bundles
def test_a_golden_is_written_again_byte_for_byte(index, tmp_path):
    bundle = read_bundle(index)
    assert bundle.tensors
    assert not bundle.dropped
    layout = json.loads(json.dumps(bundle.layout))
    write_bundle(tmp_path / index.name, bundle.tensors, layout["shards"], layout["version"])
    files = [index, *data_files(index)]
    assert {file.name for file in files} == {file.name for file in tmp_path.iterdir()}
    assert all((tmp_path / file.name).read_bytes() == file.read_bytes() for file in files)


@pytest.mark.parametrize("case", ["roformer_v1", "roformer_v2"])
def test_a_golden_holds_the_tensors_of_its_configuration(case):
    tensors = read_bundle(GOLDEN / case / "bert_model.ckpt.index").tensors
    config = json.loads((GOLDEN / case / "bert_config.json").read_text())
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    assert tensors["bert/embeddings/word_embeddings"].shape == (config["vocab_size"], width)
    assert len(tensors) == (2 + 6 * layers if case == "roformer_v2" else 9 + 16 * layers)
    kernel = tensors["bert/encoder/layer_1/intermediate/dense/kernel"]
    assert kernel.shape == (width, config["intermediate_size"])
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_tensorflow_wrote_these_values(dtype):
    tensors = read_bundle(TENSORFLOW / "model.ckpt.index").tensors
    name = str(dtype).removeprefix("torch.")
    unsigned = dtype == torch.bool or not (dtype.is_signed or dtype.is_complex)
    matrix = (torch.arange(6).reshape(3, 1, 2) - (0 if unsigned else 3)).to(dtype)
    assert same_bytes(tensors[f"matrix/{name}"], matrix)
    assert same_bytes(tensors[f"scalar/{name}"], torch.tensor(3).to(dtype))
    assert same_bytes(tensors[f"empty/{name}"], torch.empty(0, 2, dtype=dtype))


def test_an_index_of_two_blocks_is_tensorflows(tmp_path):
    tensors = {f"layer_{i % 40}/attention/{i * i}/kernel": torch.tensor(i, dtype=torch.int32) for i in range(12000)}
    index = write_bundle(tmp_path / "blocks", tensors, [list(tensors)])
    known = json.loads((TENSORFLOW / "case.json").read_text())["many_blocks"]
    assert (digest(index), digest(data_of(index))) == (known["index"], known["data"])
    assert equal(read_bundle(index).tensors, tensors)


def test_strings_are_left_out_and_slices_refused():
    bundle = read_bundle(TENSORFLOW / "strings.index")
    assert bundle.dropped == {"text": "a tensor of strings"}
    assert equal(bundle.tensors, {"number": torch.tensor(1.5)})
    assert bundle.layout["shards"] == [["number"]]
    assert "tensor 'v' is stored in slices" in refusal(TENSORFLOW / "slices.index")


def test_every_kind_of_tensor_comes_back_aligned_in_the_order_of_names(index):
    bundle = read_bundle(index)
    assert equal(bundle.tensors, state())
    assert list(bundle.tensors) == sorted(state(), key=str.encode)
    assert all(tensor.data_ptr() % tensor.itemsize == 0 for tensor in bundle.tensors.values())


def test_arrays_and_views_are_written_as_their_elements_stand(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    written = {"a": array.T, "b": torch.from_numpy(array).t(), "c": np.float64(2.5)}
    tensors = read_bundle(write_bundle(tmp_path / "x", written)).tensors
    assert torch.equal(tensors["a"], torch.from_numpy(array).t())
    assert torch.equal(tensors["a"], tensors["b"])
    assert same_bytes(tensors["c"], torch.tensor(2.5, dtype=torch.float64))


def test_changing_a_tensor_leaves_the_file_alone(index):
    before = digest(data_of(index))
    read_bundle(index).tensors["bert/kernel"].zero_()
    assert digest(data_of(index)) == before


@pytest.mark.parametrize("shards", [1, 2, 3, 9])
def test_shards_hold_what_they_held(shards, tmp_path):
    names = list(state())
    layout = [names[start::shards] for start in range(shards)]
    version = {"producer": 1, "min_consumer": 1, "bad_consumers": [3, 500]}
    index = write_bundle(tmp_path / "x", state(), layout, version)
    bundle = read_bundle(index)
    assert equal(bundle.tensors, state())
    assert bundle.layout == {"version": version, "shards": layout}
    files = [index, *data_files(index)]
    assert len(files) == 1 + shards
    assert sum(file.stat().st_size for file in files[1:]) == sum(tensor.nbytes for tensor in state().values())
    assert all(checkpoint_files(file) == files for file in files)


@pytest.mark.parametrize(
    ("tensors", "shards", "message"),
    [
        ({"a": torch.ones(1)}, [["a", "b"]], "no tensor 'b'"),
        ({"a": torch.ones(1)}, [["a"], ["a"]], "'a' twice"),
        ({"": torch.ones(1)}, None, "'' cannot be the name"),
        ({"\0a": torch.ones(1)}, None, "cannot be the name"),
        ({"a": torch.ones(1).to(torch.float8_e5m2)}, None, "'a' is torch.float8_e5m2"),
    ],
)
def test_what_a_bundle_cannot_hold_is_refused(tensors, shards, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_bundle(tmp_path / "x", tensors, shards)


def test_the_sparse_multiple_of_the_polynomial_is_one():
    polynomial = int(f"{REFLECTED_POLYNOMIAL:032b}"[::-1], 2) | 1 << 32
    power, total = 1, 0
    for exponent in range(DEGREE + 1):
        total ^= power if exponent in EXPONENTS else 0
        power = min(power << 1, power << 1 ^ polynomial)
    assert total == 0


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
    ids=["empty", "digits", "zeros", "ones", "up", "down"],
)
def test_checksums_of_the_standard(data, checksum):
    assert crc32c(data) == checksum


@pytest.mark.parametrize("size", [1, 3, 4, 7, 100, DEGREE, DEGREE + 1, 3 * DEGREE, 8 * DEGREE + 5, CHUNK + 3])
def test_folded_checksums_are_those_of_single_bytes(size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    expected = crc32c(data)
    if size < CHUNK:
        assert expected == by_bytes(data, 0xFFFFFFFF) ^ 0xFFFFFFFF
    for cut in {0, 1, 5, size // 3, size}:
        assert crc32c(data[cut:], crc32c(data[:cut])) == expected


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63, 2**64 - 1])
def test_numbers_come_back(value):
    assert read_varint(b"x" + write_varint(value) + b"y", 1) == (value, 1 + len(write_varint(value)))


def test_numbers_over_64_bits_or_cut_off_are_refused():
    for data in (b"", b"\x80", b"\xff" * 9 + b"\x02", b"\xff" * 11):
        with pytest.raises(ValueError, match="64 bits"):
            read_varint(data, 0)
    with pytest.raises(ValueError, match="not a number from 0"):
        write_varint(-1)


def test_separators_of_blocks_are_shortened_as_leveldb_does():
    pairs = [(key, b"") for key in (b"", b"abc1", b"abc9zz", b"abd", b"b\xff", b"b\xff\xff")]
    table = write_table(pairs, 1)
    _, place = read_block(table, table[-48:-8], 0)
    index, _ = read_block(table, table[-48:-8], place)
    assert [key for key, _ in index] == [b"", b"abc2", b"abc9zz", b"abd", b"b\xff", b"c"]
    assert read_table(table) == pairs
    with pytest.raises(ValueError, match="out of order"):
        write_table([(b"b", b""), (b"a", b"")])


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_no_flipped_byte_makes_another_tensor(flip, index):
    intact = state()
    for file in (index, data_of(index)):
        content = bytearray(file.read_bytes())
        found = 0
        for place in range(len(content)):
            content[place] ^= flip
            file.write_bytes(content)
            content[place] ^= flip
            read, message = outcome(index)
            assert file.name in message if message else equal(read, intact), f"byte {place} of {file.name}"
            found += bool(message)
        file.write_bytes(content)
        # The footer's padding says nothing; every other byte is under a checksum or says where one is.
        assert len(content) - found <= (40 if file == index else 0)


def test_no_shortened_file_makes_another_tensor(index):
    for file in (data_of(index), index):
        content = file.read_bytes()
        for size in range(len(content)):
            file.write_bytes(content[:size])
            assert "cut off" in refusal(index)
        file.write_bytes(content)


def raw_table(block: bytes, compression: int = 0) -> bytes:
    """A table whose only block has these bytes, under right checksums."""
    table, handles = b"", []
    handle = write_varint(0) + write_varint(len(block))
    index = b"\0\1" + write_varint(len(handle)) + b"\xff" + handle + pack("<II", 0, 1)
    for content, kind in ((block, compression), (pack("<II", 0, 1), 0), (index, 0)):
        handles.append(write_varint(len(table)) + write_varint(len(content)))
        content += bytes([kind])
        table += content + pack("<I", masked(crc32c(content)))
    return table + (handles[1] + handles[2]).ljust(40, b"\0") + MAGIC


def mutated(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(changed))
        changed[place : place + chance.randrange(2)] = bytes([chance.choice([0, 1, 127, 128, 255, place % 256])])
    return bytes(changed)


@pytest.mark.parametrize("part", ["block", "header", "global_step", "void"])
def test_malformed_indices_under_right_checksums_end_in_no_other_error(part, index):
    """Checksums guard against accidents only; a file may be made to be wrong."""
    pairs = dict(read_table(index.read_bytes()))
    whole = Block(sorted(pairs.items())).finished()
    chance = random.Random(0)
    for _ in range(300):
        if part == "block":
            index.write_bytes(raw_table(mutated(whole, chance)))
        else:
            rewrite(index, **{part: mutated(pairs[b"" if part == "header" else part.encode()], chance)})
        assert "\n" not in outcome(index)[1]


def entry(**changed) -> bytes:
    usual = {"dtype": 9, "shape": (), "shard": 0, "offset": 0, "size": 8, "checksum": 0}
    return Entry(**(usual | changed)).encode()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"header": Header(1).encode() + varint_field(2, 1)}, "big-endian"),
        ({"header": Header(1, min_consumer=2).encode()}, "a reader of version 2"),
        ({"header": Header(0).encode()}, "0 data files"),
        ({"header": bytes_field(1, b"meta")}, "TensorFlow V1 checkpoint"),
        ({"header": b"\x0b"}, "unknown wire type 3"),
        ({"global_step": entry(dtype=11)}, "'global_step' has TensorFlow's dtype number 11"),
        ({"global_step": entry(shard=1)}, "'global_step' is said to stand in data file 1 of 1"),
        ({"global_step": entry(shape=(2,))}, r"'global_step' of shape \(2,\) and torch.int64 is said to have 8 bytes"),
        ({"global_step": entry(shape=(0, 2**63), size=0)}, "too large"),
        ({"global_step": entry(offset=10**6)}, "cut off; tensor 'global_step' has 8 bytes at offset 1000000"),
        ({"global_step": entry()}, "bytes of tensor 'global_step', 8 at offset 0, have another checksum"),
        ({"global_step": entry() + bytes_field(7, b"")}, "'global_step' is stored in slices"),
        ({"global_step": bytes_field(1, b"")}, "field 1 of the message should be a number"),
        ({"global_step": varint_field(2, 1)}, "field 2 of the message should be a message"),
    ],
)
def test_what_is_wrong_is_named(changed, message, index):
    rewrite(index, **changed)
    assert re.search(message, refusal(index))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut off"),
        (b"just a text\n" * 20, "another kind of file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
        (raw_table(b"", 1), "compressed (snappy)"),
        (raw_table(b"", 9), "compressed (method 9)"),
        (raw_table(b"\xff"), "malformed: it has no room"),
        (raw_table(pack("<I", 9)), "malformed: it has no room"),
        (raw_table(b"\0\7\0abc" + pack("<II", 0, 1)), "malformed: an entry is longer"),
        (write_table([(b"key", b"value")]), "has no header"),
        (write_table([]), "has no header"),
        (write_table([(b"", Header(1).encode()), (b"\xff", entry())]), "is not UTF-8"),
    ],
)
def test_other_files_are_no_index(content, message, index):
    index.write_bytes(content)
    assert message in refusal(index)


def test_missing_and_unfetched_data_files_are_named(tmp_path):
    index = write_bundle(tmp_path / "x.ckpt", state(), [[name] for name in state()])
    files = data_files(index)
    files[4].unlink()
    assert "x.ckpt.data-00004-of-00006 missing" in refusal(index, FileNotFoundError)
    files[4].write_bytes(b"")
    files[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "x.ckpt.data-00000-of-00006 is a git-lfs pointer" in refusal(index)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"x\.ckpt\.index is missing"):
        checkpoint_files(files[0])


@pytest.mark.parametrize("name", ["", "model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_a_bundle_is_found_by_its_folder_its_stem_and_its_files(name, index):
    assert checkpoint_files(local(index.parent / name)) == [index, data_of(index)]


def test_of_several_bundles_the_text_file_chooses(index):
    other = write_bundle(index.with_name("model.ckpt-200"), {"a": torch.ones(1)})
    with pytest.raises(ValueError, match=r"several checkpoints, name one: model.ckpt-200.index, model.ckpt.index"):
        checkpoint_files(index.parent)
    pointer = index.with_name("checkpoint")
    pointer.write_text('model_checkpoint_path: "/gone/model.ckpt-200"\nall_model_checkpoint_paths: "model.ckpt"\n')
    assert checkpoint_files(index.parent) == [other, data_of(other)]
    pointer.write_text('model_checkpoint_path: "model.ckpt-300"\n')
    with pytest.raises(ValueError, match="several checkpoints"):
        checkpoint_files(index.parent)


def test_a_checkpoint_of_version_1_is_refused_by_name(index):
    single = index.with_name("old.ckpt")
    single.write_bytes(write_table([(b"", bytes_field(1, b"meta")), (b"\0a", b"")]))
    with pytest.raises(ValueError, match="TensorFlow V1 checkpoint"):
        read_checkpoint([single], ())


def test_dropped_tensors_stay_out_of_the_export(index, tmp_path):
    checkpoint = read_checkpoint(checkpoint_files(index), ())
    assert [file["container"] for file in checkpoint.files] == ["bundle", "bundle data"]
    assert [file["sha256"] for file in checkpoint.files] == [digest(index), digest(data_of(index))]
    checkpoint.drop("global_step", "the optimizer's")
    (tmp_path / "again").mkdir()
    for file in checkpoint.files:
        write_file(tmp_path / "again", file, checkpoint.state, checkpoint.dropped)
    tensors = read_bundle(tmp_path / "again" / index.name).tensors
    assert equal(tensors, {name: tensor for name, tensor in state().items() if name != "global_step"})
    with pytest.raises(ValueError, match="no tensor 'void'"):
        write_file(tmp_path / "again", checkpoint.files[0], {}, [name for name in state() if name != "void"])


@pytest.mark.parametrize("case", ["linear_transformer"])
def test_a_bundle_goes_through_convert_and_export(case, tmp_path):
    about = json.loads((GOLDEN / case / "case.json").read_text())
    (original,) = checkpoint_files(GOLDEN / case)
    tensors = read_checkpoint([original], ("model", "state_dict")).state
    names = list(tensors)
    source = tmp_path / "source"
    source.mkdir()
    write_bundle(source / "model.ckpt", tensors, [names[::2], names[1::2]])
    convert("fast_transformers", source, tmp_path / "model", about["config"])
    export("fast_transformers", tmp_path / "model", tmp_path / "back")
    assert {file.name for file in source.iterdir()} == {file.name for file in (tmp_path / "back").iterdir()}
    assert all(digest(file) == digest(tmp_path / "back" / file.name) for file in source.iterdir())


def test_safetensors_are_those_of_the_library(tmp_path):
    tensors = {'a"/é': torch.randn(3, 4).t(), "b": torch.tensor(1.0), "c": torch.empty(0, 2), "d": torch.randn(5)}
    tensors["e"] = tensors["d"][1:]
    write_safetensors(tmp_path / "ours", tensors, {"format": "pt"})
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, tmp_path / "its", {"format": "pt"}
    )
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "its").read_bytes()


def test_safetensors_hold_every_dtype_and_refuse_others(tmp_path):
    content = torch.arange(48, dtype=torch.uint8)
    tensors = {str(dtype): content.view(dtype) for dtype in SAFETENSORS_DTYPES if dtype != torch.bool}
    tensors |= {"bool": content % 2 == 0, "odd": content[:3], "conjugated": content.view(torch.complex64).conj()}
    write_safetensors(tmp_path / "x", tensors)
    assert equal(load_file(tmp_path / "x"), tensors)
    with pytest.raises(ValueError, match=r"cannot hold torch\.complex128, the dtype of a"):
        write_safetensors(tmp_path / "x", {"a": torch.ones(1, dtype=torch.complex128)})
    with pytest.raises(ValueError, match="'__metadata__'"):
        write_safetensors(tmp_path / "x", {"__metadata__": torch.ones(1)})


PEAK = """
import sys
from pathlib import Path
import torch
from noria.conversion.checkpoint import read_checkpoint
from noria.conversion.raw_bytes import write_safetensors
from noria.conversion.rules import Rule, apply
from noria.conversion.source import checkpoint_files
def peak_after(index):
    checkpoint = read_checkpoint(checkpoint_files(Path(index)), ())
    made = apply([Rule("{}/kernel", "{}.weight", torch.t, torch.t)], checkpoint.state).tensors
    write_safetensors(Path(index).with_suffix(".safetensors"), made)
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
print(-peak_after(sys.argv[1]) + peak_after(sys.argv[2]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read off /proc")
def test_converting_takes_little_more_memory_than_the_file_has(tmp_path):
    # A first checkpoint, of one tensor, brings in the code and the buffers, whose size is not the file's.
    kernels = {f"{number}/kernel": torch.randn(1000, 1000) for number in range(20)}
    one = write_bundle(tmp_path / "one", {"0/kernel": kernels["0/kernel"]})
    many = write_bundle(tmp_path / "many", kernels)
    # Else glibc keeps some freed buffers in its heap, by chance up to 32 MB of them.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAK, one, many]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(run.stdout) < 1.2 * data_of(many).stat().st_size
