"""Tiles: exact where a function looks no further than the margin, near the whole with norms, bounded in memory."""

from itertools import pairwise

import pytest
import torch
from laws import LargestTensor
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from noria import NoriaVQGANConfig, NoriaVQGANModel
from noria.modeling.image.tiling import decode_tiles, encode_tiles, map_tiles, parts_of, starts_of, tile_in_cells

FACTOR = 4


def convolution(width_in, width_out):
    torch.manual_seed(0)
    return nn.Conv2d(width_in, width_out, 3, padding=1, dtype=torch.float64)


def image(height, width, channels=3, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(2, channels, height, width, dtype=dtype)


def test_tiles_cover_a_side_evenly_and_share_what_was_asked():
    for side in range(1, 60):
        for tile, overlap in ((1, 0), (4, 0), (4, 2), (7, 3), (16, 4)):
            starts = starts_of(side, tile, overlap)
            assert starts[0] == 0
            assert max(starts[-1] + tile, side) == max(tile, side)
            assert all(a < b <= a + tile - overlap for a, b in pairwise(starts))
            assert len(starts) == 1 or len(starts) == 1 + -(-(side - tile) // (tile - overlap))


@pytest.mark.parametrize("margin", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(("tile", "overlap"), [(4, 0), (4, 1), (4, 2), (8, 4), (5, 2)])
def test_weights_add_up_to_one(tile, overlap, margin):
    for side in (5, 9, 16, 23):
        total = torch.zeros(side * 3, dtype=torch.float64)
        for part in parts_of(side, tile, overlap, 1, 3, margin):
            assert part.weights.min() >= 0
            total[part.written] += part.weights
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (36, 64), (44, 4), (64, 132)])
def test_convolutions_are_exact(height, width):
    """Two convolutions and a pool look 4 pixels far; half of an overlap of 8 is margin for encoders, a quarter of 16
    for decoders."""
    inner, outer = convolution(3, 5), convolution(5, 2)

    def encode(x):
        return avg_pool2d(outer(inner(x)), FACTOR)

    def decode(x):
        return outer(inner(interpolate(x, scale_factor=float(FACTOR))))

    pixels, latents = image(height, width), image(height // FACTOR, width // FACTOR)
    torch.testing.assert_close(encode_tiles(encode, pixels, FACTOR, 24, None, 8), encode(pixels))
    torch.testing.assert_close(decode_tiles(decode, latents, FACTOR, 32, None, 16), decode(latents))


def test_blending_leaves_no_seams_where_tiles_disagree():
    """Each tile minus its own mean, which differs from the neighbour's: a step without overlap, a slope with it."""

    def centred(x):
        return x - x.mean((2, 3), keepdim=True)

    line = torch.linspace(0, 1, 256, dtype=torch.float64).expand(1, 1, 64, 256)
    blended = map_tiles(centred, line, 64, 32, 1, 1, margin=0.25)
    cut = map_tiles(centred, line, 64, 0, 1, 1, margin=0.25)
    assert blended.diff(dim=3).abs().max() < 0.02
    assert cut.diff(dim=3).abs().max() > 0.2


def test_one_tile_is_the_plain_function():
    x = image(16, 12)
    assert encode_tiles(lambda part: part, x, FACTOR, 16, None, None) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_gradient_stay(dtype):
    x = image(16, 40, dtype=dtype).requires_grad_()
    y = map_tiles(lambda part: part * 2, x, 16, 4, 1, 1, margin=0.0)
    assert y.dtype == dtype
    y.float().sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 2), rtol=2**-6, atol=0)


@pytest.mark.parametrize(
    ("tile", "overlap", "match"),
    [
        (30, None, "`tile` must be a multiple of 4, the side of one code in pixels, not 30"),
        (32, 6, "`overlap` must be a multiple of 4, the side of one code in pixels, not 6"),
        (0, 0, "`tile` must be at least 4, the side of one code in pixels, not 0"),
        (32, 20, r"`overlap` must lie in 0..16, half of `tile`, not be 20"),
        (32, -4, r"`overlap` must lie in 0..16, half of `tile`, not be -4"),
    ],
)
def test_wrong_tiles_are_named(tile, overlap, match):
    with pytest.raises(ValueError, match=match):
        tile_in_cells(FACTOR, 64, tile, overlap)


def test_defaults_follow_the_image_size():
    assert tile_in_cells(16, 256, None, None) == (16, 4)
    assert tile_in_cells(4, 30, None, None) == (7, 1)
    assert tile_in_cells(16, 8, None, None) == (1, 0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = NoriaVQGANConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        channel_multipliers=[1, 1, 2],
        attention_resolutions=[],
        image_size=32,
        latent_channels=8,
        code_size=8,
    )
    return NoriaVQGANModel(config).eval()


@torch.no_grad()
def test_a_model_encodes_and_decodes_in_tiles(model):
    pixels = image(64, 96, dtype=torch.float32).tanh()
    whole, tiled = model.encode(pixels), model.encode_tiled(pixels, tile=64, overlap=16)
    assert tiled.codes.shape == whole.codes.shape
    assert tiled.quantized.shape == whole.quantized.shape
    near = (tiled.latents - whole.latents).square().mean() / whole.latents.square().mean()
    assert near < 0.05
    decoded, pieced = model.decode(whole.quantized), model.decode_tiled(whole.quantized, tile=64, overlap=16)
    assert pieced.shape == decoded.shape
    assert (pieced - decoded).square().mean() / decoded.var() < 0.3


@torch.no_grad()
def test_an_image_of_one_tile_is_encoded_and_decoded_as_ever(model):
    pixels = image(64, 48, dtype=torch.float32).tanh()
    whole, tiled = model.encode(pixels), model.encode_tiled(pixels, tile=64, overlap=16)
    assert torch.equal(tiled.codes, whole.codes)
    assert torch.equal(tiled.latents, whole.latents)
    assert torch.equal(model.decode_tiled(whole.quantized, tile=64), model.decode(whole.quantized))


@torch.no_grad()
def test_memory_is_that_of_a_tile_and_the_image(model):
    """The whole decoder makes maps of 16 channels at full size, tiles nothing beyond the 3 of the image itself."""
    latents = torch.randn(1, 8, 48, 64)
    with LargestTensor() as whole:
        pixels = model.decode(latents)
    with LargestTensor() as tiled:
        model.decode_tiled(latents)
    assert whole.numbers >= 16 * 192 * 256
    assert tiled.numbers == pixels.numel()
    with LargestTensor() as tiled:
        model.encode_tiled(pixels.clamp(-1, 1))
    assert tiled.numbers <= pixels.numel()


def test_images_in_tiles_are_checked_as_ever(model):
    with pytest.raises(ValueError, match="multiples of 4"):
        model.encode_tiled(torch.zeros(1, 3, 62, 64))
    with pytest.raises(ValueError, match="channels"):
        model.encode_tiled(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match="quantized latents"):
        model.decode_tiled(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="`tile` must be a multiple of 4"):
        model.decode_tiled(torch.zeros(1, 8, 16, 16), tile=33)
