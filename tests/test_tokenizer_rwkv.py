"""RWKV's tokenizers: ids of the original, the same after every way to save and load, and refusals that say why."""

import json
import os
import pickle
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from noria import NoriaRWKVConfig, NoriaRWKVForCausalLM, NoriaRWKVTokenizer, hub
from noria.tokenization.rwkv import write_tokenizer
from noria.tokenization.rwkv_world import END_OF_TEXT, read_world_vocabulary, write_world_vocabulary

# One worker runs them all: the vocabulary is shared.
pytestmark = pytest.mark.xdist_group("rwkv_tokenizer")

GOLDEN = Path(__file__).parent / "golden" / "rwkv_tokenizer"
EXPECTED = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
NAME = "rwkv_vocab_v20230424.txt"
PUBLISHED = os.environ.get("RWKV_VOCABULARY")
MIXED = "研究生命的起源，Hello World 2023! 😀\n\n<|endoftext|>"


def load_rules():
    """The module that made the golden ids: it names the lines and the vocabulary."""
    spec = spec_from_file_location("golden_rwkv_tokenizer", GOLDEN / "make.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_rules()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rwkv_tokenizer")


@pytest.fixture(scope="module")
def vocabulary(place) -> Path:
    make.write(place / NAME)
    return place / NAME


@pytest.fixture(scope="module")
def folder(place, vocabulary) -> Path:
    assert write_tokenizer(vocabulary, place / "world") == "world"
    return place / "world"


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def numbers(vocabulary) -> dict[bytes, int]:
    return {token: number for number, token in enumerate(read_world_vocabulary(vocabulary), 1)}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return make.lines()


def check_golden(tokenizer, golden: dict, lines: list[str]) -> None:
    fragments, ids = len(make.FRAGMENTS), tokenizer(lines)["input_ids"]
    different = [x for x, a, b in zip(lines, ids, golden["fragments"], strict=False) if a != b]
    assert not different, "these fragments have other ids"
    assert len(golden["fragments"]) == fragments
    if golden["sample"]:
        assert ids[fragments :: make.SAMPLE] == golden["sample"]
    assert len(ids) == 10000
    assert make.digest(ids) == golden["digest"]
    assert len(tokenizer) == tokenizer.vocab_size == golden["size"] + 1
    assert tokenizer.batch_decode(ids) == lines


def test_ten_thousand_lines_have_the_ids_of_the_original(tokenizer, vocabulary, lines):
    golden = EXPECTED["small"]
    assert make.hash_of(vocabulary) == golden["vocabulary"]
    check_golden(tokenizer, golden, lines)


@pytest.mark.skipif(not PUBLISHED, reason=f"RWKV_VOCABULARY does not name a {NAME}")
def test_ten_thousand_lines_under_the_published_vocabulary(lines, tmp_path):
    golden = EXPECTED["published"]
    assert make.hash_of(Path(PUBLISHED)) == golden["vocabulary"]
    assert write_tokenizer(Path(PUBLISHED), tmp_path) == "world"
    assert (tmp_path / NAME).read_text(encoding="utf-8") == Path(PUBLISHED).read_text(encoding="utf-8")
    check_golden(AutoTokenizer.from_pretrained(tmp_path), golden, lines)


def by_trying(text: str, ids: dict[bytes, int], longest: int) -> list[int]:
    """Greedy longest match in its plainest form."""
    source, found = text.encode("utf-8"), []
    while source:
        size = next(n for n in range(longest, 0, -1) if source[:n] in ids and n <= len(source))
        found.append(ids[source[:size]])
        source = source[size:]
    return found


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_is_the_longest_tokens_that_fit_and_comes_back(tokenizer, numbers, text):
    found = tokenizer.encode(text)
    assert found == by_trying(text, numbers, make.LONGEST)
    assert tokenizer.decode(found) == text


def test_every_token_is_a_string_of_its_own(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(set(tokens)) == len(tokenizer)
    assert tokenizer.convert_tokens_to_ids(tokens) == list(range(len(tokenizer)))
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(tokens)}
    assert tokenizer.convert_tokens_to_ids("no token at all") is None
    assert tokenizer.convert_ids_to_tokens(len(tokenizer) + 5) == ""


def test_halves_of_characters_are_shown_and_joined(tokenizer):
    emoji = tokenizer.encode("a😀b", add_special_tokens=False)
    halves = [index + 1 for index in "😀".encode()]
    assert tokenizer.decode([98, *halves, 99]) == "a😀b"
    assert tokenizer.decode([98, *halves[:2]]) == "a\ufffd"
    assert tokenizer.decode([halves[-1], 98]) == "\ufffda"
    assert tokenizer.decode(emoji) == "a😀b"


def test_the_end_of_a_text_is_zero_and_spelled_by_no_usual_text(tokenizer):
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == [0, 0, 0]
    assert tokenizer.unk_token is None
    assert 0 not in tokenizer.encode("<|endoftext|>\x00")
    assert tokenizer.encode(f"a{END_OF_TEXT}b") == [98, 0, 99]
    assert 0 not in tokenizer.encode(END_OF_TEXT, split_special_tokens=True)
    assert tokenizer.decode([98, 0, 99], skip_special_tokens=True) == "ab"


def test_a_batch_is_padded_on_the_left(tokenizer):
    batch = tokenizer(["a", "a b c"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0, -1] == 98
    assert batch["attention_mask"].sum(1).tolist() == [1, len(tokenizer.encode("a b c"))]
    assert tokenizer("a", "b")["input_ids"] == [98, 99]


def assert_same(first, second) -> None:
    texts = [*make.FRAGMENTS, MIXED]
    assert first(texts)["input_ids"] == second(texts)["input_ids"]
    assert first.get_vocab() == second.get_vocab()
    assert first.special_tokens_map == second.special_tokens_map
    assert (first.model_max_length, first.padding_side) == (second.model_max_length, second.padding_side)


def test_saved_and_loaded_again_it_is_the_same(tokenizer, vocabulary, tmp_path):
    tokenizer.save_pretrained(tmp_path / "once")
    assert (tmp_path / "once" / NAME).read_bytes() == vocabulary.read_bytes()
    NoriaRWKVTokenizer.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    again = AutoTokenizer.from_pretrained(tmp_path / "twice")
    assert type(again) is NoriaRWKVTokenizer
    assert_same(tokenizer, again)
    assert_same(tokenizer, pickle.loads(pickle.dumps(tokenizer)))


def test_added_tokens_and_settings_are_kept(vocabulary, tmp_path):
    tokenizer = NoriaRWKVTokenizer(vocabulary, padding_side="right", model_max_length=4)
    before = len(tokenizer)
    assert tokenizer.add_tokens(["<体裁>", "é~~"]) == 2
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]}) == 1
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert_same(tokenizer, again)
    assert again.encode("a<体裁>é~~<|user|>") == [98, before, before + 1, before + 2]
    assert again.decode([98, before, before + 1, before + 2]) == "a<体裁>é~~<|user|>"
    assert len(again("a b c d e f g", truncation=True)["input_ids"]) == 4


def test_a_vocabulary_beside_a_model_is_enough(tokenizer, vocabulary, tmp_path):
    NoriaRWKVConfig().save_pretrained(tmp_path)
    (tmp_path / NAME).write_bytes(vocabulary.read_bytes())
    assert_same(AutoTokenizer.from_pretrained(tmp_path), tokenizer)


ALONE = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("noria") is None
from transformers import AutoTokenizer

texts, folders = json.load(sys.stdin)
tokenizers = [AutoTokenizer.from_pretrained(folder, trust_remote_code=True) for folder in folders]
print(json.dumps([tokenizer(texts)["input_ids"] for tokenizer in tokenizers]))
"""


def test_without_noria_its_code_travels_along(tokenizer, folder, tmp_path):
    model = NoriaRWKVForCausalLM(NoriaRWKVConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    hub.write_code(model, tmp_path / "model")
    found = {path.name for path in (tmp_path / "model").glob("*.py") if not path.name.startswith(("model", "conf"))}
    assert found == {"tokenization_rwkv_world.py"}
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for source in (Path(x) for x in sys.path if x.endswith("-packages")):
        for entry in source.iterdir():
            if "noria" not in entry.name and not (libraries / entry.name).exists():
                (libraries / entry.name).symlink_to(entry)
    texts = [*make.FRAGMENTS, MIXED]
    inherited = {name: x for name, x in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE, str(libraries)],
        input=json.dumps([texts, [str(folder), str(tmp_path / "model")]]),
        capture_output=True,
        text=True,
        env=inherited | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout) == [tokenizer(texts)["input_ids"]] * 2


def neox(path: Path, *special: str) -> Path:
    """A tokenizer.json of GPT-NeoX's kind: bytes without merges, the special tokens first."""
    backend = Tokenizer(BPE({x: i + 2 for i, x in enumerate(sorted(ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(list(special))
    backend.save(str(path))
    return path


def test_the_tokenizer_of_the_pile_is_a_plain_json(tmp_path):
    source = neox(tmp_path / "20B_tokenizer.json", "<|endoftext|>", "<|padding|>")
    assert write_tokenizer(source, tmp_path / "pile") == "20B"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pile")
    assert type(tokenizer) is PreTrainedTokenizerFast
    assert tokenizer.encode(MIXED) == Tokenizer.from_file(str(source)).encode(MIXED).ids
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<|padding|>", "left")
    assert len(tokenizer) == Tokenizer.from_file(str(source)).get_vocab_size()
    without = neox(tmp_path / "other.json", "<|endoftext|>")
    write_tokenizer(without, tmp_path / "other")
    assert AutoTokenizer.from_pretrained(tmp_path / "other").pad_token == "<|endoftext|>"


def test_a_json_that_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no token <\|endoftext\|>: it is not the tokenizer of an RWKV"):
        write_tokenizer(neox(tmp_path / "a.json"), tmp_path / "target")
    (tmp_path / "b.json").write_text('{"model": 1}')
    with pytest.raises(ValueError, match=r"b\.json is not a tokenizer\.json"):
        write_tokenizer(tmp_path / "b.json", tmp_path / "target")
    with pytest.raises(FileNotFoundError):
        write_tokenizer(tmp_path / "none.json", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3 'a' 1", "line 257 is not `257 literal length`, but \"3 'a' 1\""),
        ("257 'ab' 3", "line 257 is not `257 literal length`"),
        ("257 '' 0", "line 257 is not `257 literal length`"),
        ("257 exit() 2", "line 257 is not `257 literal length`"),
        ("257 'a 1", "line 257 is not `257 literal length`"),
        ("257", "line 257 is not `257 literal length`"),
        ("257 b'a' 1", "line 257 repeats the token b'a' of line 98"),
        ("257 [1] 1", "line 257 is not `257 literal length`"),
    ],
)
def test_lines_that_cannot_be_read_are_refused(line, message, tmp_path):
    path = tmp_path / NAME
    write_world_vocabulary((bytes([byte]) for byte in range(256)), path)
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read_world_vocabulary(path)
    assert message in str(error.value)


def test_literals_are_read_as_python_writes_them(tmp_path):
    wanted = [bytes([byte]) for byte in range(256)]
    wanted += [x.encode("utf-8") for x in ("it's", '"', "'\"", "\\n", "\u2028\x85", " 1 ", "天气")] + [b"\xe5\xa4"]
    wanted = list(dict.fromkeys(wanted))
    write_world_vocabulary(wanted, tmp_path / NAME)
    assert read_world_vocabulary(tmp_path / NAME) == wanted


def test_vocabularies_that_cannot_be_used_are_refused(tokenizer, tmp_path):
    write_world_vocabulary((bytes([byte]) for byte in range(255)), tmp_path / NAME)
    with pytest.raises(ValueError, match=r"lacks 1 of the 256 single bytes, among them b'\\xff'"):
        write_tokenizer(tmp_path / NAME, tmp_path / "target")
    (tmp_path / NAME).write_bytes(b"1 '\xff' 1\n")
    with pytest.raises(ValueError, match="not a World vocabulary in UTF-8"):
        write_tokenizer(tmp_path / NAME, tmp_path / "target")
    (tmp_path / NAME).write_bytes(b"")
    with pytest.raises(ValueError, match="lacks 256 of the 256 single bytes"):
        write_tokenizer(tmp_path / NAME, tmp_path / "target")
    with pytest.raises(ValueError, match=rf"holds no {NAME}"):
        NoriaRWKVTokenizer()
    with pytest.raises(ValueError, match="no offsets"):
        tokenizer(["a"], return_offsets_mapping=True)
    with pytest.raises(UnicodeEncodeError):
        tokenizer("\ud83d")
