"""A convolution of the doubled map, and the transposed one that takes its place: same values, same gradients."""

import pytest
import torch
from torch.nn.functional import conv2d

import noria.modeling.ops.doubled_convolution as doubled_convolution
from noria.modeling.ops.doubled_convolution import convolve_doubled


def sample(shape, width, bias, dtype=torch.float64):
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, dtype=dtype), torch.randn(width, shape[1], 3, 3, dtype=dtype)
    return x, weight, torch.randn(width, dtype=dtype) if bias else None


def by_definition(x, weight, bias):
    return conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, bias, padding=1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["fast", "chunkwise", None])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 5), (1, 5, 1, 7), (1, 2, 48, 50)])
def test_every_form_is_its_definition(shape, form, bias):
    parts = [part if part is None else part.requires_grad_() for part in sample(shape, 4, bias)]
    found, expected = convolve_doubled(*parts, form=form), by_definition(*parts)
    torch.testing.assert_close(found, expected)
    leaves = [part for part in parts if part is not None]
    above = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, leaves, above), torch.autograd.grad(expected, leaves, above), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_rounding_is_that_of_the_plain_form(dtype, tolerance):
    parts = sample((1, 32, 46, 46), 32, True)
    exact = by_definition(*parts)
    for form in ("fast", "chunkwise"):
        found = convolve_doubled(*(part.to(dtype) for part in parts), form=form)
        assert found.dtype == dtype
        assert (found - exact).abs().max() / exact.abs().max() < tolerance


def test_small_maps_are_doubled(monkeypatch):
    x, weight, bias = sample((1, 2, 8, 8), 3, True)
    monkeypatch.setattr(doubled_convolution, "conv_transpose2d", None)
    torch.testing.assert_close(convolve_doubled(x, weight, bias), by_definition(x, weight, bias))
    monkeypatch.setattr(doubled_convolution, "LEAST_PLACES", 64)
    with pytest.raises(TypeError):
        convolve_doubled(x, weight, bias)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"\(o i 3 3\), not \(2, 2, 1, 1\)"):
        convolve_doubled(torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 1, 1), None)
    with pytest.raises(ValueError, match="form must be one of"):
        convolve_doubled(torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 3, 3), None, form="quick")


def test_channels_last_stays():
    x, weight, bias = sample((1, 4, 48, 48), 4, True, torch.float32)
    found = convolve_doubled(x.contiguous(memory_format=torch.channels_last), weight, bias, form="fast")
    assert found.is_contiguous(memory_format=torch.channels_last)
