"""Maps of codes larger than those that a prior was trained on: Esser et al. 2021 (arXiv:2012.09841), section 3.2.

Each code is written in view of a window of the trained size around it, cut off at the borders:

    top = clamp(i - h / 2, 0, H - h)        left = clamp(j - w / 2, 0, W - w)

Codes that follow each other in one window are one run: the prior writes them in one go, with its cache. A window that
covers the map makes one run of all, which is plain sampling.
"""

from typing import NamedTuple


class Run(NamedTuple):
    """`count` codes in a window at (top, left), from the window's place `start` on, row by row."""

    top: int
    left: int
    start: int
    count: int


def place_window(place: int, size: int, window: int) -> int:
    """Where along one side the window of `place` begins."""
    return min(max(place - window // 2, 0), size - window)


def plan_runs(size: tuple[int, int], window: tuple[int, int], done: int = 0) -> list[Run]:
    """All runs for a map of `size`, row by row, of which the first `done` codes are there already.

    Raises ValueError for a window that is larger than the map.
    """
    height, width = window
    if height > size[0] or width > size[1]:
        raise ValueError(f"a map of {size[0]}x{size[1]} codes is smaller than the window of {height}x{width}.")
    runs: list[Run] = []
    for place in range(done, size[0] * size[1]):
        i, j = divmod(place, size[1])
        top, left = place_window(i, size[0], height), place_window(j, size[1], width)
        start = (i - top) * width + j - left
        last = runs[-1] if runs else None
        if last and (last.top, last.left, last.start + last.count) == (top, left, start):
            runs[-1] = last._replace(count=last.count + 1)
        else:
            runs.append(Run(top, left, start, 1))
    return runs
