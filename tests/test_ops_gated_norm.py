"""The gated norm in blocks is the plain one, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

import noria.modeling.ops.gated_norm as gated_norm
from noria.modeling.ops.dispatch import forced_form


@pytest.mark.parametrize("before_gate", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_blocks_are_the_whole(groups, before_gate, dtype, monkeypatch):
    monkeypatch.setattr(gated_norm, "BLOCK_NUMBERS", 2 * 12 * 4)
    torch.manual_seed(0)
    y, z, weight = (
        torch.randn(2, 11, 12, dtype=dtype),
        torch.randn(2, 11, 30, dtype=dtype),
        torch.randn(12, dtype=dtype),
    )
    found = []
    for form in ("fast", "chunkwise"):
        leaves = [part.clone().requires_grad_() for part in (y, z, weight)]
        with forced_form(form):
            out = gated_norm.gated_rms_norm(leaves[0], leaves[1][..., 3:15], leaves[2], groups, 1e-5, before_gate)
        found.append([out, *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    tolerance = 1e-12 if dtype == torch.float64 else 2**-5
    for one, other in zip(*found, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_it_is_its_equation():
    torch.manual_seed(0)
    y, z, weight = (torch.randn(*shape, dtype=torch.float64) for shape in ((1, 5, 6), (1, 5, 6), (6,)))
    gated = y * F.silu(z)
    expected = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(gated_norm.gated_rms_norm(y, z, weight, 1, 1e-5, False), expected)


def test_frozen_weights_get_no_gradient():
    y, z = torch.randn(1, 5, 6, requires_grad=True), torch.randn(1, 5, 6)
    gated_norm.gated_rms_norm(y, z, torch.ones(6), 1, 1e-5, False).sum().backward()
    assert y.grad is not None
