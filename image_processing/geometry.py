"""From an image's size to that of a batch: scaled, then cut around the middle, in one step of resampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Frame(NamedTuple):
    """The part of an image that is kept, as (left, top, right, bottom), and the height and width that it gets."""

    box: tuple[float, float, float, float]
    height: int
    width: int


def edge_sizes(value: Any, name: str, allow_shortest: bool) -> dict[str, int]:
    """A size as a dictionary of `height` and `width`, or of `shortest_edge`: a number is one or the other.

    Raises ValueError for other keys, and for numbers below 1.
    """
    if isinstance(value, int):
        value = {"shortest_edge": value} if allow_shortest else {"height": value, "width": value}
    elif isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    known = [{"height", "width"}, *([{"shortest_edge"}] if allow_shortest else [])]
    # transformers' own sizes list every key that there could be, most of them with None.
    given = {key: int(edge) for key, edge in dict(value).items() if edge is not None} if is_mapping(value) else {}
    if set(given) not in known:
        wanted = " or ".join(" and ".join(sorted(keys)) for keys in known)
        raise ValueError(f"`{name}` must be a number, or have the keys {wanted}, not be {value!r}.")
    if min(given.values()) < 1:
        raise ValueError(f"`{name}` must be at least 1, not {given}.")
    return given


def is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "keys")


def frame(
    height: int,
    width: int,
    size: dict[str, int] | None,
    crop: dict[str, int] | None,
    multiple: int,
    name: str = "the image",
) -> Frame:
    """The frame of an image that is scaled to `size`, then cut to `crop`, or to the multiples of `multiple` below.

    None leaves out a step; sides are cut to multiples in any case. Raises ValueError where the scaled image is smaller
    than the cut.
    """
    scaled_height, scaled_width = scaled(height, width, size)
    if crop is None:
        cut_height, cut_width = scaled_height // multiple * multiple, scaled_width // multiple * multiple
    else:
        cut_height, cut_width = crop["height"], crop["width"]
    if not 0 < cut_height <= scaled_height or not 0 < cut_width <= scaled_width:
        wanted = f"{cut_height or multiple} x {cut_width or multiple}"
        raise ValueError(
            f"{name}, of {scaled_height} x {scaled_width} (height x width) after resizing, cannot be cut to {wanted}: "
            "give a greater `size`, or leave `do_resize` on."
        )
    top, left = (scaled_height - cut_height) // 2, (scaled_width - cut_width) // 2
    down, across = height / scaled_height, width / scaled_width
    box = (left * across, top * down, (left + cut_width) * across, (top + cut_height) * down)
    return Frame(box, cut_height, cut_width)


def scaled(height: int, width: int, size: dict[str, int] | None) -> tuple[int, int]:
    if size is None:
        return height, width
    if "shortest_edge" not in size:
        return size["height"], size["width"]
    edge = size["shortest_edge"]
    ratio = edge / min(height, width)
    return max(edge, round(height * ratio)), max(edge, round(width * ratio))


def apply(plane: Any, kept: Frame, resample: int) -> np.ndarray:
    """A PIL image's frame as an array (h w) or (h w c)."""
    left, top, right, bottom = kept.box
    if (right - left, bottom - top) == (kept.width, kept.height):
        return np.asarray(plane.crop((round(left), round(top), round(right), round(bottom))))
    inside = (left, top, min(right, plane.width), min(bottom, plane.height))
    return np.asarray(plane.resize((kept.width, kept.height), resample, box=inside))
