"""The embedded pictures: what is shipped, under which licences, and how they are split."""

import sys
from collections import Counter

import pytest
import torch

from noria.data.emoji import CATEGORIES, Emoji, emoji, split
from noria.data.texts import licence


@pytest.fixture(scope="module")
def pictures():
    pytest.importorskip("PIL", reason="the image extra is not installed")
    return emoji()


def test_the_sheet_is_what_its_readme_says(pictures):
    counts = Counter(CATEGORIES[picture.category] for picture in pictures)
    assert counts == dict(zip(CATEGORIES, (85, 159, 5, 270, 131, 264, 386, 169, 224, 218), strict=True))
    assert len({picture.name for picture in pictures}) == 1911
    assert len({picture.pixels.numpy().tobytes() for picture in pictures}) == 1897
    assert {(picture.pixels.shape, picture.pixels.dtype) for picture in pictures} == {((3, 32, 32), torch.uint8)}


def test_pictures_lie_where_their_names_say(pictures):
    """Of a black square the middle is black; of a red heart it is red; around both there is white."""
    named = {picture.name: picture.pixels for picture in pictures}
    assert named["black_large_square"][:, 16, 16].max() < 80
    red, green, blue = named["heart"][:, 14, 16].tolist()
    assert red > 200 > 2 * max(green, blue)
    assert named["heart"][:, 0, 0].tolist() == [255, 255, 255]


def test_both_licences_are_shipped():
    assert "Cal Henderson" in licence("emoji-datasource-google")
    assert "Apache License" in licence("noto-emoji")


def test_the_split_depends_on_the_pixels_alone(pictures):
    train, held_out = split(pictures)
    assert (len(train), len(held_out)) == (1811, 100)
    sides = [{picture.pixels.numpy().tobytes() for picture in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    renamed = [Emoji("", 0, picture.pixels.clone()) for picture in reversed(pictures)]
    again = [{picture.pixels.numpy().tobytes() for picture in side} for side in split(renamed)]
    assert again == sides
    assert tuple(map(len, split(pictures, 1))) == (0, 1911)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match="held_out must be a share between 0 and 1"):
        split([], share)


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"noria\[image\]"):
        emoji()
