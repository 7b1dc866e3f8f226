"""The embedded text and its tokenizer: what is shipped, how it is split, and that nothing is lost on the way."""

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from noria.data.tang_vs_song import LABELS, tang_vs_song
from noria.data.texts import GENRES, classics, licence, split
from noria.tokenization.characters import SPECIAL_TOKENS, character_tokenizer


@pytest.fixture(scope="module")
def records():
    return classics()


@pytest.fixture(scope="module")
def tokenizer(records):
    return character_tokenizer(record.text for record in records)


def test_the_sample_is_what_its_readme_says(records):
    assert len(records) == 3653
    text = "".join(record.text for record in records)
    assert len(text) == 287_701
    assert len(set(text)) == 5962
    counts = Counter(record.genre for record in records)
    assert dict(zip(GENRES, (366, 280, 305, 1500, 512, 690), strict=True)) == counts


def test_the_licence_is_shipped():
    assert "MIT License" in licence()
    with pytest.raises(ValueError, match="no licence of 'moon' is shipped; known sources: chinese-poetry"):
        licence("moon")


def test_the_poems_are_what_their_readme_says():
    train, test = tang_vs_song()
    assert [Counter(poem.label for poem in side) for side in (train, test)] == [{0: 3520, 1: 3480}, {0: 480, 1: 520}]
    assert LABELS == ("tang", "song")
    assert {len(poem.text) for poem in train + test} == {64}
    assert len({c for poem in train + test for c in poem.text}) == 6268
    assert (len({poem.text for poem in train}), len({poem.text for poem in test})) == (6999, 1000)
    assert not {poem.text for poem in train} & {poem.text for poem in test}


def test_neither_form_nor_punctuation_tells_the_dynasty():
    marks = "，。？！；："
    forms = [Counter(i for i, c in enumerate(p.text) if c in marks) for side in tang_vs_song() for p in side]
    assert {tuple(form) for form in forms} == {tuple(range(7, 64, 8))}


def test_the_split_depends_on_the_text_alone(records):
    train, held_out = split(records)
    assert (len(train), len(held_out)) == (3478, 175)
    assert not {r.text for r in train} & {r.text for r in held_out}
    backwards = split(records[::-1])
    assert [sorted(r.text for r in side) for side in backwards] == [
        sorted(r.text for r in side) for side in (train, held_out)
    ]
    part = split(records[:500])
    assert set(part[1]) <= set(held_out)
    assert {r.genre for r in held_out} == set(GENRES)


@pytest.mark.parametrize(("share", "sizes"), [(0, (3653, 0)), (1, (0, 3653))])
def test_the_whole_sample_may_lie_on_one_side(records, share, sizes):
    assert tuple(map(len, split(records, share))) == sizes


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(records, share):
    with pytest.raises(ValueError, match="held_out must be a share between 0 and 1"):
        split(records, share)


def test_every_record_comes_back(records, tokenizer):
    texts = [record.text for record in records]
    rows = tokenizer(texts).input_ids
    assert all(len(row) == len(text) + 1 for row, text in zip(rows, texts, strict=True))
    assert tokenizer.unk_token_id not in {token for row in rows for token in row}
    assert tokenizer.batch_decode(rows, skip_special_tokens=True) == texts


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_from_its_own_tokenizer(text):
    tokenizer = character_tokenizer(text + "a")
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def test_ids_begin_with_the_special_tokens_and_follow_frequency():
    tokenizer = character_tokenizer("abb\ncb c")
    assert tokenizer.convert_ids_to_tokens(range(8)) == [*SPECIAL_TOKENS, "b", "c", "\n", " "]
    assert tokenizer("b\n z").input_ids == [1, 4, 6, 7, 3]
    assert tokenizer("").input_ids == [1]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_rare_characters_become_unknown():
    tokenizer = character_tokenizer("aab", min_count=2)
    assert tokenizer("ab", add_special_tokens=False).input_ids == [4, 3]
    assert len(tokenizer) == 5


@pytest.mark.parametrize(("side", "row"), [("left", [0, 0, 1, 4]), ("right", [1, 4, 0, 0])])
def test_batches_are_padded(side, row):
    batch = character_tokenizer("abc", padding_side=side)(["a", "abc"], padding=True)
    assert batch.input_ids == [row, [1, 4, 5, 6]]
    assert batch.attention_mask[0] == [int(token != 0) for token in row]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": ""}, "no character occurs 1 times or more"),
        ({"texts": "ab", "min_count": 2}, "no character occurs 2 times or more"),
        ({"texts": "ab", "min_count": 0}, "min_count must be at least 1, got 0"),
        ({"texts": "ab", "padding_side": "top"}, "padding_side must be 'left' or 'right', got 'top'"),
    ],
)
def test_nothing_to_build_from_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        character_tokenizer(**arguments)


def test_the_files_need_no_noria(tokenizer, tmp_path):
    text = "明月松间照，\n清泉石上流。☃"
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer([text, "明"], padding=True).input_ids
    assert AutoTokenizer.from_pretrained(tmp_path)([text, "明"], padding=True).input_ids == ids
    script = (
        "import sys\n"
        "sys.modules['noria'] = None\n"
        "from transformers import AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(tmp_path)!r})\n"
        f"assert tokenizer([{text!r}, '明'], padding=True).input_ids == {ids}\n"
        f"assert tokenizer.decode({ids[0]}, skip_special_tokens=True) == {text[:-1]!r}\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
