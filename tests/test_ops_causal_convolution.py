"""The short convolution: every form against the sum written out, with its state, padding, packing and gradients."""

import pytest
import torch
from torch import Tensor

from noria.modeling.ops.causal_convolution import causal_convolution

FORMS = ["sequential", "fast"]


def written_out(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor, ahead: int = 0) -> Tensor:
    """One sequence x (t d) after the inputs `before` (k-1-ahead d)."""
    k = weight.shape[1]
    window = torch.cat([before, x, x.new_zeros(ahead, x.shape[1])])
    rows = [(window[t : t + k] * weight.t()).sum(0) for t in range(len(x))]
    return torch.stack(rows) + (0 if bias is None else bias)


def draw(b: int, t: int, d: int = 5, k: int = 4, ahead: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = ((b, t, d), (d, k), (d,), (b, k - 1 - ahead, d))
    x, weight, bias, state = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return x, weight, bias, state


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("t", [1, 3, 64, 70])
def test_every_form_is_the_sum(form, k, t):
    x, weight, bias, state = draw(2, t, k=k)
    y, after = causal_convolution(x, weight, bias, state=state, form=form)
    for i in range(2):
        torch.testing.assert_close(y[i], written_out(x[i], weight, bias, state[i]))
    assert torch.equal(after, torch.cat([state, x], 1)[:, t:])
    bare, _ = causal_convolution(x, weight, form=form)
    torch.testing.assert_close(bare[0], written_out(x[0], weight, None, torch.zeros_like(state[0])))


@pytest.mark.parametrize("form", [None, *FORMS])
def test_any_cut_gives_the_same(form):
    x, weight, bias, _ = draw(2, 12)
    whole, final = causal_convolution(x, weight, bias)
    state, parts = None, []
    for piece in x.split([1, 1, 5, 2, 3], dim=1):
        y, state = causal_convolution(piece, weight, bias, state=state, form=form)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert torch.equal(state, final)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ahead", [0, 2])
def test_padding_is_absent_wherever_it_stands(form, ahead):
    x, weight, bias, state = draw(4, 9, ahead=ahead)
    mask = torch.tensor(
        [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 1, 0, 1, 0, 1], [0] * 9]
    )
    y, after = causal_convolution(x, weight, bias, state=state, mask=mask.bool(), ahead=ahead, form=form)
    for i in range(4):
        alone = x[i][mask[i].bool()]
        if len(alone):
            torch.testing.assert_close(y[i][mask[i].bool()], written_out(alone, weight, bias, state[i], ahead))
        assert torch.equal(after[i], torch.cat([state[i], alone])[len(alone) :])


def test_a_single_padded_token_leaves_the_state():
    x, weight, bias, state = draw(2, 1)
    mask = torch.tensor([[True], [False]])
    _, after = causal_convolution(x, weight, bias, state=state, mask=mask)
    assert torch.equal(after[0], torch.cat([state[0, 1:], x[0]]))
    assert torch.equal(after[1], state[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("padded", [False, True])
def test_packed_sequences_are_alone(form, ahead, padded):
    x, weight, bias, state = draw(1, 9, ahead=ahead)
    segments = torch.tensor([[0, 0, 1, 2, 2, 2, 2, 3, 3]])
    mask = torch.tensor([[True] * 5 + [not padded] + [True] * 3])
    y, after = causal_convolution(
        x, weight, bias, state=state, mask=mask if padded else None, segments=segments, ahead=ahead, form=form
    )
    for number in range(4):
        place = (segments[0] == number) & mask[0]
        before = state[0] if number == 0 else torch.zeros_like(state[0])
        torch.testing.assert_close(y[0][place], written_out(x[0][place], weight, bias, before, ahead))
    last = torch.cat([torch.zeros_like(state[0]), x[0, -2:]])[-after.shape[1] :]
    assert torch.equal(after[0], last)


def test_a_new_sequence_of_one_token_forgets_the_state():
    x, weight, bias, state = draw(2, 1)
    y, after = causal_convolution(x, weight, bias, state=state, segments=torch.tensor([[0], [1]]))
    torch.testing.assert_close(y[0], written_out(x[0], weight, bias, state[0]))
    torch.testing.assert_close(y[1], written_out(x[1], weight, bias, torch.zeros_like(state[1])))
    assert torch.equal(after[1], torch.cat([torch.zeros_like(state[1, 1:]), x[1]]))


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form):
    x, weight, bias, state = (v.requires_grad_() for v in draw(2, 67, d=2))
    mask = torch.rand(2, 67) > 0.3
    segments = (torch.rand(2, 67) > 0.8).long().cumsum(1)
    for options in ({}, {"mask": mask, "segments": segments}):

        def run(*inputs, options=options, form=form):
            y, after = causal_convolution(*inputs[:3], state=inputs[3], form=form, **options)
            return y * mask[..., None], after

        assert torch.autograd.gradcheck(run, (x, weight, bias, state), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype):
    x, weight, bias, state = draw(2, 70)
    exact, _ = causal_convolution(x, weight, bias, state=state)
    y, after = causal_convolution(*(v.to(dtype) for v in (x, weight, bias)), state=state.to(dtype))
    assert y.dtype == after.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_compiled_and_exported():
    x, weight, bias, state = (v.float() for v in draw(2, 70))
    mask = torch.rand(2, 70) > 0.3

    class Layer(torch.nn.Module):
        def forward(self, x, state, mask):
            return causal_convolution(x, weight, bias, state=state, mask=mask)

    expected = Layer()(x, state, mask)
    program = torch.export.export(
        Layer(), (x, state, mask), dynamic_shapes=({1: torch.export.Dim.DYNAMIC}, None, {1: torch.export.Dim.DYNAMIC})
    )
    for found in (
        torch.compile(Layer(), fullgraph=True, backend="eager")(x, state, mask),
        program.module()(x, state, mask),
    ):
        torch.testing.assert_close(found, expected)
    shorter = program.module()(x[:, :11], state, mask[:, :11])
    torch.testing.assert_close(shorter, Layer()(x[:, :11], state, mask[:, :11]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5)}, "x must be"),
        ({"x": torch.zeros(2, 0, 5)}, "x must be"),
        ({"weight": torch.zeros(4, 4)}, "weight must be .* d = 5"),
        ({"bias": torch.zeros(4)}, r"bias must be \(5,\)"),
        ({"state": torch.zeros(2, 4, 5)}, r"state must be \(2, 3, 5\)"),
        ({"mask": torch.ones(2, 7)}, "mask must be .* booleans"),
        ({"segments": torch.zeros(2, 6, dtype=torch.int64)}, "segments must be"),
        ({"ahead": 4}, r"ahead must be in 0\.\.3, not 4"),
        ({"form": "quick"}, "form must be one of"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"x": torch.zeros(2, 7, 5), "weight": torch.zeros(5, 4), "bias": torch.zeros(5)} | change
    with pytest.raises(ValueError, match=message):
        causal_convolution(**arguments)
