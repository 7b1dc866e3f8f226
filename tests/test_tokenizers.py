"""RoFormer's tokenizers: ids of bert4keras, the same after every way to save and load, and refusals that say why."""

import json
import marshal
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import unicodedata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import jieba
import pytest
import torch
from hub_server import TOKEN, connected
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from noria import NoriaRoFormerConfig, NoriaRoFormerForMaskedLM, hub
from noria.tokenization import roformer_words
from noria.tokenization.roformer import guess_level, write_tokenizer
from noria.tokenization.roformer_characters import LONGEST_WORD
from noria.tokenization.roformer_words import NoriaRoFormerTokenizer
from noria.tokenization.vocabulary import read_vocabulary

# One worker runs them all: the vocabularies and the segmenter are shared.
pytestmark = pytest.mark.xdist_group("tokenizers")

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
EXPECTED = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
LEVELS = ("characters", "words")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIXED = "研究生命的起源，Hello World 2023年！[MASK]"


def load_rules():
    """The module that made the golden ids: it names the lines and the vocabularies."""
    spec = spec_from_file_location("golden_tokenizers", GOLDEN / "make.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_rules()


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return make.lines()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def vocabularies(place) -> dict[str, Path]:
    """`vocab.txt` of each level, as published archives hold it."""
    files = {}
    for level in LEVELS:
        folder = place / "published" / f"{level}_L-12_H-768_A-12"
        folder.mkdir(parents=True)
        files[level] = folder / "vocab.txt"
        files[level].write_text("".join(f"{x}\n" for x in make.VOCABULARIES[level]()), encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def folders(place, vocabularies) -> dict[str, Path]:
    """What write_tokenizer makes of them, the level being guessed."""
    written = {level: place / level for level in LEVELS}
    for level, folder in written.items():
        assert write_tokenizer(vocabularies[level], folder) == level
    return written


@pytest.fixture(scope="module")
def tokenizers(folders) -> dict:
    return {level: AutoTokenizer.from_pretrained(folder) for level, folder in folders.items()}


@pytest.fixture(params=LEVELS)
def level(request) -> str:
    return request.param


@pytest.fixture
def tokenizer(level, tokenizers):
    return tokenizers[level]


def vocab(path: Path, *tokens: str) -> Path:
    path.write_text("".join(f"{x}\n" for x in (*SPECIAL, *tokens)), encoding="utf-8")
    return path


def test_ten_thousand_lines_have_the_ids_of_bert4keras(level, tokenizer, lines):
    golden, size = EXPECTED[level], len(make.FRAGMENTS)
    assert make.hashlib.sha256("\n".join(make.VOCABULARIES[level]()).encode()).hexdigest() == golden["vocabulary"]
    assert len(tokenizer) == golden["size"]
    ids = tokenizer(lines, split_special_tokens=True)["input_ids"]
    different = [x for x, a, b in zip(lines, ids[:size], golden["fragments"], strict=False) if a != b]
    assert not different, "these fragments have other ids"
    assert ids[size :: make.SAMPLE] == golden["sample"]
    assert len(ids) == 10000
    assert make.digest(ids) == golden["digest"]


def test_pairs_have_the_ids_and_types_of_bert4keras(level, tokenizer):
    found = [tokenizer(*pair, split_special_tokens=True) for pair in make.pairs()]
    assert [[x["input_ids"], x["token_type_ids"]] for x in found] == EXPECTED[level]["pairs"]


def test_a_special_token_written_out_is_that_token_unless_asked_otherwise(tokenizer):
    ids = tokenizer.encode("今[MASK]天[SEP]", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["今", "[MASK]", "天", "[SEP]"]
    plain = tokenizer.encode("[MASK]", add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.mask_token_id not in plain
    assert len(plain) >= 3


def assigned(rng: random.Random) -> str:
    """A random text of characters that every Unicode version since 2012 knows, sigmas and marks among them."""
    blocks = [(0x20, 0x250), (0x300, 0x340), (0x391, 0x3A1), (0x3A3, 0x3A9), (0x400, 0x460), (0x2000, 0x2010)]
    blocks += [(0x3000, 0x3040), (0x4E00, 0x4F00), (0xAC00, 0xAC40), (0xE000, 0xE008), (0x2B800, 0x2B81E)]
    blocks += [(0x2B820, 0x2B840), (0xFF01, 0xFF20), (9, 14), (0xFFFD, 0xFFFE)]
    return "".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randint(1, 12)))


def test_tokenizer_json_and_python_share_every_rule(tokenizers):
    """The rules as tokenizer.json states them, against the words' fallback, which follows Python's Unicode tables."""
    characters, rng = tokenizers["characters"], random.Random(0)
    known = characters.get_vocab()
    texts = [assigned(rng) for _ in range(5000)]
    texts = [text for text in texts if not any(unicodedata.category(x) == "Lm" for x in text)]
    for text, ids in zip(texts, characters(texts, add_special_tokens=False)["input_ids"], strict=True):
        units = roformer_words.normalize(text).translate(roformer_words._APART).split()
        pieces = [piece for unit in units for piece in roformer_words.pieces(unit, known)]
        assert ids == [known.get(piece, characters.unk_token_id) for piece in pieces], ascii(text)


@pytest.mark.parametrize(("length", "unknown"), [(LONGEST_WORD, False), (LONGEST_WORD + 1, True)])
def test_words_are_pieced_up_to_two_hundred_characters(tokenizer, length, unknown):
    ids = tokenizer.encode("a" * length, add_special_tokens=False)
    assert (ids == [tokenizer.unk_token_id]) == unknown


def assert_same(first, second) -> None:
    texts = [*make.FRAGMENTS, MIXED]
    assert first(texts)["input_ids"] == second(texts)["input_ids"]
    assert dict(first("一天", "二月")) == dict(second("一天", "二月"))
    assert first.get_vocab() == second.get_vocab()
    assert first.special_tokens_map == second.special_tokens_map
    assert (first.model_max_length, first.padding_side) == (second.model_max_length, second.padding_side)


def test_saved_and_loaded_again_it_is_the_same(level, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "once")
    again = type(tokenizer).from_pretrained(tmp_path / "once")
    again.save_pretrained(tmp_path / "twice")
    assert_same(tokenizer, again)
    assert_same(tokenizer, AutoTokenizer.from_pretrained(tmp_path / "twice"))
    kind = {"characters": PreTrainedTokenizerFast, "words": NoriaRoFormerTokenizer}[level]
    assert type(AutoTokenizer.from_pretrained(tmp_path / "twice")) is kind
    assert (tmp_path / "twice" / "tokenizer.json").exists() == (level == "characters")


def test_added_tokens_and_the_limit_are_kept(level, vocabularies, tmp_path):
    write_tokenizer(vocabularies[level], tmp_path / "limited", level, max_length=8)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "limited")
    assert tokenizer.model_max_length == 8
    assert len(tokenizer("研究生命的起源，研究生命的起源", truncation=True)["input_ids"]) == 8
    assert tokenizer.add_tokens(["<体裁>"]) == 1
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["[TITLE]"]}) == 1
    tokenizer.save_pretrained(tmp_path / "added")
    again = AutoTokenizer.from_pretrained(tmp_path / "added")
    assert_same(tokenizer, again)
    wanted = ["<体裁>", "诗", "[TITLE]"]
    assert again.tokenize("<体裁>诗[TITLE]") == wanted
    assert again.convert_tokens_to_ids(wanted[::2]) == [len(again) - 2, len(again) - 1]


def test_what_a_tokenizer_returns(tokenizer):
    batch = tokenizer([MIXED, "好"], padding=True, return_tensors="pt", return_special_tokens_mask=True)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "special_tokens_mask"}
    first, second = batch["input_ids"].tolist()
    assert (first[0], first[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert second[3:] == [tokenizer.pad_token_id] * (len(first) - 3)
    assert batch["attention_mask"][1].sum() == 3
    assert batch["special_tokens_mask"][0, [0, -1]].tolist() == [1, 1]
    assert batch["token_type_ids"].sum() == 0
    pair = tokenizer("好", "天", return_special_tokens_mask=True)
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]
    assert pair["special_tokens_mask"] == [1, 0, 1, 0, 1]
    prompt = tokenizer("春眠不觉晓")["input_ids"][:-1]
    assert prompt == [tokenizer.cls_token_id, *tokenizer.encode("春眠不觉晓", add_special_tokens=False)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("研究生命的起源，结婚的和尚未结婚的。", None),
        ("hello world, 2023年", "hello world, 2023年"),
        ("the token（hello）", "the token（hello）"),
        ("圆周率是 3.14 !", "圆周率是3.14!"),
    ],
)
def test_decoding_gives_readable_chinese(tokenizer, text, shown):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == (shown or text)
    assert tokenizer.decode(ids) == f"[CLS]{' ' * text[0].isascii()}{shown or text}{' ' * text[-1].isascii()}[SEP]"


def test_only_tokenizer_json_knows_offsets(tokenizers):
    text = "Crème 天气"
    found = tokenizers["characters"](text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert [text[a:b] for a, b in found][-2:] == ["天", "气"]
    for batch in (text, [text]):
        with pytest.raises(ValueError, match="knows no offsets"):
            tokenizers["words"](batch, return_offsets_mapping=True)


def test_words_are_kept_whole_and_fall_back_where_unknown(tmp_path):
    tokenizer = NoriaRoFormerTokenizer(vocab(tmp_path / "vocab.txt", "起源", "非常", "起", "研", "究", "h", "##i"))
    assert tokenizer.tokenize("研究起源 HI 非常") == ["研", "究", "起源", "h", "##i", "非常"]


def test_words_from_a_vocabulary_alone_are_words(vocabularies, tokenizers, tmp_path):
    """transformers' own RoFormerTokenizer cuts such a folder into characters without a word."""
    assert_same(NoriaRoFormerTokenizer.from_pretrained(vocabularies["words"].parent), tokenizers["words"])
    for level in LEVELS:
        NoriaRoFormerConfig().save_pretrained(tmp_path / level)
        (tmp_path / level / "vocab.txt").write_bytes(vocabularies[level].read_bytes())
    assert_same(AutoTokenizer.from_pretrained(tmp_path / "words"), tokenizers["words"])
    with pytest.raises(ValueError, match="belongs to a character model"):
        AutoTokenizer.from_pretrained(tmp_path / "characters")


def test_jieba_of_the_process_does_not_matter(tokenizers):
    before = tokenizers["words"].tokenize(MIXED)
    jieba.setLogLevel("ERROR")
    jieba.add_word("研究生命的起源")
    assert "研究生命的起源" in jieba.lcut(MIXED, HMM=False)
    assert tokenizers["words"].tokenize(MIXED) == before


def test_pickled_and_in_other_processes_it_is_the_same(tokenizer):
    assert_same(tokenizer, pickle.loads(pickle.dumps(tokenizer)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(tokenizer.encode, make.FRAGMENTS) == tokenizer(make.FRAGMENTS)["input_ids"]


def test_jieba_is_quiet_and_leaves_temporary_files_alone(folders, tokenizers, tmp_path):
    """Another user's cache could hold any dictionary, and a cache that cannot be written is no reason for noise."""
    (tmp_path / "jieba.cache").write_bytes(marshal.dumps(({"研究生命": 10**6}, 10**6)))
    script = "import sys, noria\nfrom transformers import AutoTokenizer\n"
    script += "print(AutoTokenizer.from_pretrained(sys.argv[1]).encode(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folders["words"]), MIXED],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == tokenizers["words"].encode(MIXED)
    assert "jieba" not in done.stderr
    assert "dict" not in done.stderr
    assert [x.name for x in tmp_path.iterdir()] == ["jieba.cache"]


@pytest.fixture
def without_jieba(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)


def test_without_jieba_words_are_refused_in_one_line(without_jieba, vocabularies, folders, tmp_path):
    for attempt in (
        lambda: AutoTokenizer.from_pretrained(folders["words"]),
        lambda: write_tokenizer(vocabularies["words"], tmp_path / "target"),
    ):
        with pytest.raises(ImportError, match=r"^[^\n]*pip install noria\[jieba\]$"):
            attempt()


def test_without_jieba_characters_work(without_jieba, vocabularies, tmp_path):
    assert write_tokenizer(vocabularies["characters"], tmp_path) == "characters"
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize("天气") == ["天", "气"]


ALONE = """
import importlib.util, json, sys
job = json.loads(sys.argv[1])
sys.path.append(job["libraries"])
assert importlib.util.find_spec("noria") is None
from transformers import AutoTokenizer

found = {}
for folder in job["folders"]:
    for trust in (False, True):
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        except Exception as error:
            found[f"{folder} {trust}"] = str(error)
            continue
        tokenizer.save_pretrained(job["scratch"])
        again = AutoTokenizer.from_pretrained(job["scratch"], trust_remote_code=trust)
        texts = job["texts"]
        found[f"{folder} {trust}"] = [x(texts, texts[::-1])["input_ids"] for x in (tokenizer, again)]
json.dump(found, open(job["results"], "w"))
"""


@pytest.fixture(scope="module")
def alone(place, folders) -> dict:
    """What a process without noria finds: tokenizers alone, beside a model, on the Hub, and robbed of their code."""
    libraries = place / "libraries"
    libraries.mkdir()
    for source in (Path(x) for x in sys.path if x.endswith("-packages")):
        for entry in source.iterdir():
            if "noria" not in entry.name and not (libraries / entry.name).exists():
                (libraries / entry.name).symlink_to(entry)
    job = {"libraries": str(libraries), "texts": [*make.FRAGMENTS, MIXED], "folders": list(map(str, folders.values()))}
    job |= {"results": str(place / "alone.json"), "scratch": str(place / "scratch")}
    with connected() as server:
        for level, folder in folders.items():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = NoriaRoFormerForMaskedLM(NoriaRoFormerConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1))
            hub.save(model.to(torch.float32), place / "models" / level, tokenizer)
            hub.push(place / "models" / level, f"reader/{level}", token=TOKEN)
            job["folders"] += [str(place / "models" / level), f"reader/{level}"]
        robbed = place / "robbed"
        tokenizer.save_pretrained(robbed)
        config = json.loads((robbed / "tokenizer_config.json").read_text())
        (robbed / "tokenizer_config.json").write_text(json.dumps({**config, "auto_map": {}}))
        job["folders"].append(str(robbed))
        repaired = place / "repaired"
        NoriaRoFormerConfig().save_pretrained(repaired)
        for file in robbed.glob("*[!py]"):
            (repaired / file.name).write_bytes(file.read_bytes())
        hub.write_code(NoriaRoFormerConfig(), repaired)
        job["folders"].append(str(repaired))
        inherited = {name: x for name, x in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
        settings = {"HF_HOME": str(place / "home"), "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-I", "-S", "-c", ALONE, json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, env=inherited | settings, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((place / "alone.json").read_text())


@pytest.mark.parametrize("where", ["tokenizer", "model", "hub"])
def test_without_noria_the_ids_are_the_same(level, where, alone, place, folders, tokenizer):
    name = {"tokenizer": folders[level], "model": place / "models" / level, "hub": f"reader/{level}"}[where]
    texts = [*make.FRAGMENTS, MIXED]
    assert alone[f"{name} True"] == [tokenizer(texts, texts[::-1])["input_ids"]] * 2


@pytest.mark.parametrize("where", ["tokenizer", "model", "hub"])
def test_without_noria_and_without_trust_words_fail_clearly(where, alone, place, folders, tokenizers):
    def found(level: str):
        name = {"tokenizer": folders[level], "model": place / "models" / level, "hub": f"reader/{level}"}[where]
        return alone[f"{name} False"]

    assert "contains custom code" in found("words")
    assert "trust_remote_code=True" in found("words")
    assert isinstance(found("characters"), list)


def test_without_noria_and_without_code_no_other_class_steps_in(alone, place):
    assert all(isinstance(alone[f"{place / 'robbed'} {trust}"], str) for trust in (True, False))


def test_the_code_of_a_model_takes_the_tokenizers_along(alone, place, tokenizers):
    """In the form of the other flat files, also where the tokenizer came without; nothing lies there twice."""
    texts = [*make.FRAGMENTS, MIXED]
    assert alone[f"{place / 'repaired'} True"] == [tokenizers["words"](texts, texts[::-1])["input_ids"]] * 2
    for folder in (place / "repaired", place / "models" / "words"):
        found = {path.name for path in folder.glob("*.py") if not path.name.startswith(("model", "configuration"))}
        assert found == {f"tokenization_{name}.py" for name in ("chinese", "roformer_words", "vocabulary")}
        assert (folder / "tokenization_chinese.py").read_text().startswith("# Part of noria ")
    assert not list((place / "models" / "characters").glob("tokenization_*"))


def test_beside_noria_the_installed_class_is_used(folders):
    assert type(AutoTokenizer.from_pretrained(folders["words"], trust_remote_code=True)) is NoriaRoFormerTokenizer


def test_a_vocabulary_is_read_as_bert4keras_reads_it(tmp_path):
    path = vocab(tmp_path / "vocab.txt", "天\t7", "", "\u3000", "气")
    with pytest.raises(ValueError, match="line 8 repeats the token '' of line 7"):
        read_vocabulary(path)
    path = vocab(path, "天\t7", "", "气", "", "")
    assert read_vocabulary(path) == {token: index for index, token in enumerate((*SPECIAL, "天", "", "气"))}


def test_a_carriage_return_and_rare_white_space_are_read_as_python_reads_text(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join((*SPECIAL, "天", "\x1f气\u2028x")).encode())
    assert list(read_vocabulary(path))[5:] == ["天", "气"]


def test_a_vocabulary_that_cannot_be_numbered_is_refused(tmp_path):
    with pytest.raises(ValueError, match="line 7 repeats the token '天' of line 6"):
        read_vocabulary(vocab(tmp_path / "vocab.txt", "天", "天"))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n天\n")
    with pytest.raises(ValueError, match=r"lacks \[CLS\], \[SEP\], \[MASK\]"):
        read_vocabulary(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_bytes("天".encode("gb18030"))
    with pytest.raises(ValueError, match="not a vocabulary in UTF-8"):
        read_vocabulary(tmp_path / "vocab.txt")
    with pytest.raises(FileNotFoundError):
        write_tokenizer(tmp_path / "none.txt", tmp_path / "target")
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"holds no vocab\.txt"):
        NoriaRoFormerTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("chinese", "words", "level"),
    [(99, 0, "characters"), (995, 5, "characters"), (80, 20, "words"), (95, 5, None), (0, 0, "characters")],
)
def test_the_level_is_told_by_the_vocabulary(chinese, words, level):
    tokens = [chr(0x4E00 + i) for i in range(chinese)] + [f"{chr(0x4E00 + i)}天" for i in range(words)]
    if level is None:
        with pytest.raises(ValueError, match="say level="):
            guess_level(tokens)
    else:
        assert guess_level(tokens) == level


@pytest.mark.parametrize(
    ("folder", "level"),
    [
        ("chinese_roformer-char_L-6_H-384_A-6", "characters"),
        ("chinese_roformer-sim-char-ft_L-6_H-384_A-6", "characters"),
        ("roformer_chinese_char_small", "characters"),
        ("chinese_roformer_L-6_H-384_A-6", None),
        ("roformer-charming", None),
    ],
)
def test_the_name_of_the_folder_goes_before_the_vocabulary(folder, level, tmp_path):
    (tmp_path / folder).mkdir()
    path = vocab(
        tmp_path / folder / "vocab.txt", *(chr(0x4E00 + i) for i in range(90)), "今天", "天气", "非常", "起源"
    )
    if level:
        assert write_tokenizer(path, tmp_path / "target") == level
    else:
        with pytest.raises(ValueError, match=r"4\.0% of 99 tokens are Chinese words"):
            write_tokenizer(path, tmp_path / "target")
        assert write_tokenizer(path, tmp_path / "target", "words") == "words"


def test_levels_that_cannot_be_are_refused(tmp_path):
    path = vocab(tmp_path / "vocab.txt", "天", "气")
    with pytest.raises(ValueError, match="level is 'letters'; it can be 'characters' or 'words'"):
        write_tokenizer(path, tmp_path / "target", "letters")
    with pytest.raises(ValueError, match="belongs to a character model"):
        write_tokenizer(path, tmp_path / "target", "words")
    assert not (tmp_path / "target").exists()
