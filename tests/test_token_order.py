"""The orders in which maps of codes are read: bijections, with the values that the authors' permuters have."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from noria.configuration.vqgan_prior import TOKEN_ORDERS
from noria.modeling.image.sliding_window import plan_runs
from noria.modeling.image.token_order import to_codes, to_tokens, token_order

SIZES = [(1, 1), (1, 7), (6, 1), (2, 2), (3, 5), (4, 4), (5, 5), (6, 6), (7, 4), (16, 16), (20, 21)]

# The forward indices of taming-transformers' permuters on a map of 4x4.
PUBLISHED = {
    "row": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    "z_curve": [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15],
    "spiral_out": [9, 5, 6, 10, 14, 13, 12, 8, 4, 0, 1, 2, 3, 7, 11, 15],
    "spiral_in": [15, 11, 7, 3, 2, 1, 0, 4, 8, 12, 13, 14, 10, 6, 5, 9],
    "alternate": [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12],
    "subsample": [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15],
    "random": [3, 13, 7, 2, 6, 10, 4, 1, 14, 0, 15, 9, 8, 12, 11, 5],
}


def test_every_order_of_the_configuration_has_its_published_values():
    assert set(PUBLISHED) == set(TOKEN_ORDERS)


@pytest.mark.parametrize("order", TOKEN_ORDERS)
def test_orders_are_the_published_ones(order):
    assert token_order(order, 4, 4).tolist() == PUBLISHED[order]


@pytest.mark.parametrize("order", TOKEN_ORDERS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_orders_are_bijections_and_have_their_inverse(order, height, width):
    places = token_order(order, height, width)
    assert sorted(places.tolist()) == list(range(height * width))
    codes = torch.randint(0, 99, (2, height, width))
    tokens = to_tokens(codes, places)
    assert torch.equal(tokens[:, 0], codes.flatten(1)[:, places[0]])
    assert torch.equal(to_codes(tokens, places, height, width), codes)


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_random_order_is_numpys(seed, height, width):
    expected = np.random.RandomState(seed).permutation(height * width)
    assert token_order("random", height, width, seed=seed).tolist() == expected.tolist()


def neighbours(place: int, width: int) -> set[tuple[int, int]]:
    i, j = divmod(place, width)
    return {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)}


@pytest.mark.parametrize("size", [2, 5, 6, 9])
def test_spirals_and_alternating_rows_go_step_by_step(size):
    for order in ("spiral_in", "spiral_out", "alternate"):
        places = token_order(order, size, size).tolist()
        for one, next_one in pairwise(places):
            assert divmod(next_one, size) in neighbours(one, size), order


def test_an_order_may_be_given_as_it_is():
    assert token_order([2, 0, 1, 3], 2, 2).tolist() == [2, 0, 1, 3]
    with pytest.raises(ValueError, match="does not fit a map of 3x2"):
        token_order([2, 0, 1, 3], 3, 2)


def test_wrong_orders_are_refused():
    with pytest.raises(ValueError, match="unknown token order 'hilbert'; known: row"):
        token_order("hilbert", 4, 4)
    with pytest.raises(ValueError, match="0x4"):
        token_order("row", 0, 4)


@pytest.mark.parametrize(
    ("size", "window"), [((4, 4), (4, 4)), ((6, 7), (4, 4)), ((5, 9), (3, 5)), ((4, 9), (4, 4)), ((9, 4), (4, 4))]
)
@pytest.mark.parametrize("done", [0, 5])
def test_runs_write_every_code_once_in_view_of_what_is_there(size, window, done):
    """Places as published: a window is centred, its even half below and to the right, and stops at the borders."""
    place = done
    for run in plan_runs(size, window, done):
        for step in range(run.count):
            i, j = divmod(place, size[1])
            row, column = divmod(run.start + step, window[1])
            assert (run.top + row, run.left + column) == (i, j)
            for at, length, side, local in ((i, size[0], window[0], row), (j, size[1], window[1], column)):
                half = side // 2
                rest = length - at
                assert local == (at if at <= half else side - rest if rest < side - half else half)
            place += 1
    assert place == size[0] * size[1]


def test_a_window_that_covers_the_map_makes_one_run():
    assert plan_runs((4, 5), (4, 5), 3) == [(0, 0, 3, 17)]
    with pytest.raises(ValueError, match="a map of 4x5 codes is smaller than the window of 4x6"):
        plan_runs((4, 5), (4, 6))
