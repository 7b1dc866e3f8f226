"""The product for one or two rows is the linear layer's own, and only plain layers are turned."""

import pytest
import torch
from architectures import CAUSAL
from laws import over, same
from torch import nn

from noria.modeling.row_linear import RowLinear, row_linears


@pytest.mark.parametrize("shape", [(24,), (1, 24), (1, 1, 24), (2, 1, 24), (1, 2, 24), (3, 24), (0, 24)])
@pytest.mark.parametrize("outputs", [1, 7, 12, 61])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_linear_layer(shape, outputs, bias):
    layer, x = nn.Linear(24, outputs, bias=bias), torch.randn(*shape, 48)[..., ::2]
    with torch.no_grad():
        expected = layer(x)
        with row_linears(layer):
            assert type(layer) is RowLinear
            found = layer(x)
        assert type(layer) is nn.Linear
    if expected.numel():
        same(found, expected, 1e-6)
    assert found.shape == expected.shape


def test_gradients_other_dtypes_and_other_layers_are_left_alone():
    layer, x = nn.Linear(8, 8), torch.randn(1, 8)
    with row_linears(layer):
        layer(x).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    assert layer.weight.grad is not None
    for other in (nn.Linear(8, 8).bfloat16(), nn.Bilinear(2, 2, 2), type("Own", (nn.Linear,), {})(8, 8)):
        kind = type(other)
        with row_linears(other):
            assert type(other) is kind


def test_an_error_inside_leaves_the_model_as_it_was():
    layer = nn.Linear(4, 4)
    with pytest.raises(KeyError), row_linears(layer):
        raise KeyError
    assert type(layer) is nn.Linear


@over(CAUSAL)
def test_generate_writes_what_the_plain_layers_write(entry, tokens, monkeypatch):
    model, ids = entry.model(dtype=torch.float32), tokens(1, 9)
    arguments = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    calls = []
    forward = RowLinear.forward
    monkeypatch.setattr(RowLinear, "forward", lambda self, x: calls.append(1) or forward(self, x))
    fast = model.generate(ids, **arguments)
    assert calls
    monkeypatch.setattr("noria.modeling.row_linear.ROWS", 0)
    plain = model.generate(ids, **arguments)
    assert torch.equal(fast.sequences, plain.sequences)
    same(torch.stack(fast.logits), torch.stack(plain.logits), 1e-4)
    assert not any(type(module) is RowLinear for module in model.modules())
