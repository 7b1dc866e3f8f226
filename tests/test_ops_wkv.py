"""Law 1 of the WKV operator and of the token shift: every form is the recurrence, however the sequence is cut."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from noria.modeling.ops import wkv_factors
from noria.modeling.ops.token_shift import token_shift
from noria.modeling.ops.wkv import EMPTY, empty_state, wkv

FORMS = ("chunkwise", "fast")
NAMES = ("k", "v", "decay", "bonus", "num", "den", "top")


def problem(length: int, spread: float, padded: bool, packed: bool, dtype=torch.float64, width: int = 5):
    """Inputs (2 t d), a state, a mask and segments; `spread` is the keys' standard deviation."""
    draw = torch.Generator().manual_seed(length)
    k, v = (torch.randn(2, length, width, generator=draw, dtype=dtype) for _ in range(2))
    decay, bonus, top, num = (torch.randn(2, width, generator=draw, dtype=dtype) for _ in range(4))
    den = torch.rand(2, width, generator=draw, dtype=dtype)
    mask = torch.rand(2, length, generator=draw) > 0.4 if padded else None
    segments = (torch.rand(2, length, generator=draw) > 0.9).long().cumsum(1) if packed else None
    return (k * spread, v, 2 * decay[0] - 1, bonus[0], num, den, top * spread), mask, segments


def run(inputs, mask, segments, form):
    """y at real tokens, the final sums, and the gradients of all inputs from both."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y, final = wkv(*inputs[:4], state=tuple(inputs[4:]), mask=mask, segments=segments, form=form)
    y = y if mask is None else torch.where(mask[..., None], y, 0)
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=draw, dtype=x.dtype) for x in (y, *final[:2])]
    loss = sum((x * weight).sum() for x, weight in zip((y, *final[:2]), weights, strict=True))
    return [y.detach(), *(x.detach() for x in final)], torch.autograd.grad(loss, inputs)


def close(found, expected, tolerance, name=""):
    scale = expected.abs().max().clamp(min=1e-3)
    error = ((found - expected).abs().max() / scale).item()
    assert error <= tolerance, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spread", [1, 10, 200])
@pytest.mark.parametrize("length", [1, 7, 64, 150])
def test_forms_agree(form, spread, length):
    for padded, packed in itertools.product((False, True), repeat=2):
        inputs, mask, segments = problem(length, spread, padded, packed)
        expected, expected_gradients = run(inputs, mask, segments, "sequential")
        found, gradients = run(inputs, mask, segments, form)
        for mine, other in zip(found, expected, strict=True):
            close(mine, other, 1e-10)
        for name, mine, other in zip(NAMES, gradients, expected_gradients, strict=True):
            close(mine, other, 1e-9 if spread < 100 else 1e-7, name)


def test_both_scales_of_the_fast_form_agree(monkeypatch):
    for padded, packed in itertools.product((False, True), repeat=2):
        inputs, mask, segments = problem(90, 2, padded, packed)
        shared, shared_gradients = run(inputs, mask, segments, "fast")
        with monkeypatch.context() as patch:
            patch.setattr(wkv_factors, "RANGE", -1.0)
            own, own_gradients = run(inputs, mask, segments, "fast")
        for mine, other in zip([*shared, *shared_gradients], [*own, *own_gradients], strict=True):
            close(mine, other, 1e-10)


def test_the_gradient_is_the_derivative():
    inputs, mask, segments = problem(9, 1, True, True, width=3)
    inputs = [x.clone().requires_grad_() for x in inputs]

    def outputs(*inputs):
        y, (num, den, top) = wkv(*inputs[:4], state=tuple(inputs[4:]), mask=mask, segments=segments, form="fast")
        return torch.where(mask[..., None], y, 0), num * top.exp(), den * top.exp()

    def true_sums(*inputs):
        y, num, den = outputs(*inputs)
        return y, num / den.clamp(min=1e-30)

    assert torch.autograd.gradcheck(true_sums, inputs, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("form", ["sequential", *FORMS])
def test_the_definition(form):
    (k, v, decay, bonus, *_), _, _ = problem(6, 1, False, False)
    y, _ = wkv(k, v, decay, bonus, form=form)
    for t in range(6):
        age = torch.arange(t - 1, -1, -1, dtype=k.dtype)[:, None]
        weights = torch.cat([torch.exp(k[:, :t] - age * decay.exp()), torch.exp(bonus + k[:, t : t + 1])], 1)
        close(y[:, t], (weights * v[:, : t + 1]).sum(1) / weights.sum(1), 1e-12)


@pytest.mark.parametrize("form", ["sequential", *FORMS])
@pytest.mark.parametrize("spread", [1, 60])
def test_any_cut_gives_the_same(form, spread):
    inputs, mask, segments = problem(70, spread, True, True)
    k, v, decay, bonus, *state = inputs
    y, final = wkv(k, v, decay, bonus, state=tuple(state), mask=mask, segments=segments, form=form)
    parts, start, before = [], 0, torch.zeros(2, 1, dtype=torch.int64)
    for piece in (1, 30, 1, 2, 36):
        place = slice(start, start + piece)
        numbers = segments[:, place] - before
        part, state = wkv(
            k[:, place],
            v[:, place],
            decay,
            bonus,
            state=tuple(state),
            mask=mask[:, place],
            segments=numbers,
            form=form,
        )
        parts.append(part)
        start, before = start + piece, segments[:, place][:, -1:]
    close(torch.where(mask[..., None], torch.cat(parts, 1), 0), torch.where(mask[..., None], y, 0), 1e-10)
    for mine, whole in zip(state, final, strict=True):
        close(mine, whole, 1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("spread", "tolerance"), [(1, 2e-6), (10, 1e-5), (60, 3e-5)])
def test_float32_is_accurate_for_any_keys(form, spread, tolerance):
    inputs, _, _ = problem(400, spread, False, False, torch.float32, width=32)
    exact, _ = wkv(*(x.double() for x in inputs[:4]), form="sequential")
    y, final = wkv(*inputs[:4], form=form)
    assert y.isfinite().all()
    assert all(part.isfinite().all() and part.dtype == torch.float32 for part in final)
    close(y.double(), exact, tolerance)
    k = inputs[0].clone().requires_grad_()
    wkv(k, *inputs[1:4], form=form)[0].sum().backward()
    assert k.grad.isfinite().all()


@pytest.mark.parametrize("form", ["sequential", *FORMS])
def test_nothing_but_padding_leaves_the_state(form):
    (k, v, decay, bonus, *state), _, _ = problem(20, 5, False, False)
    none = torch.zeros(2, 20, dtype=torch.bool)
    for before in (tuple(state), empty_state(2, 5, torch.float64, k.device)):
        y, after = wkv(k, v, decay, bonus, state=before, mask=none, form=form)
        assert y.isfinite().all()
        for mine, other in zip(after, before, strict=True):
            close(mine, other, 1e-12)
    assert (after[2] < EMPTY / 2).all()


@pytest.mark.parametrize("form", ["sequential", *FORMS])
def test_half_precision_sums_in_float32(form):
    (k, v, decay, bonus, *_), _, _ = problem(40, 1, False, False, torch.float32)
    y, final = wkv(k.bfloat16(), v.bfloat16(), decay, bonus, form=form)
    exact, _ = wkv(k.bfloat16().double(), v.bfloat16().double(), decay.double(), bonus.double(), form="sequential")
    assert y.dtype == torch.bfloat16
    assert {part.dtype for part in final} == {torch.float32}
    close(y.double(), exact, 2**-8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"v": torch.zeros(1, 3, 2)}, "k and v must both be"),
        ({"k": torch.zeros(1, 3, 4, dtype=torch.int64)}, "k must be real floating point"),
        ({"decay": torch.zeros(3)}, r"decay must be \(4,\)"),
        ({"state": (torch.zeros(1, 4),)}, "state must be three tensors"),
        ({"mask": torch.ones(1, 3)}, "mask must be"),
        ({"segments": torch.zeros(1, 2, dtype=torch.int64)}, "segments must be"),
        ({"form": "quick"}, "form must be one of"),
    ],
)
def test_bad_input_is_named(changed, message):
    good = {"k": torch.zeros(1, 3, 4), "v": torch.zeros(1, 3, 4), "decay": torch.zeros(4), "bonus": torch.zeros(4)}
    with pytest.raises(ValueError, match=message):
        wkv(**(good | changed))


def test_token_shift_sees_the_real_token_before():
    x = torch.arange(1.0, 13).view(2, 6, 1)
    before, last = token_shift(x)
    assert torch.equal(before, F.pad(x, (0, 0, 1, 0))[:, :-1])
    assert torch.equal(last, x[:, -1])
    mask = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    before, last = token_shift(x, torch.tensor([[50.0], [60.0]]), mask)
    assert before[0, [1, 3, 4], 0].tolist() == [50, 2, 4]
    assert last[:, 0].tolist() == [5, 60]
    segments = torch.tensor([[0, 0, 1, 1, 1, 2]]).expand(2, -1)
    before, last = token_shift(x, torch.tensor([[50.0], [60.0]]), mask, segments)
    assert before[0, [1, 3, 4], 0].tolist() == [50, 0, 4]
    assert last[:, 0].tolist() == [0, 0]
    before, last = token_shift(x, torch.tensor([[50.0], [60.0]]), None, segments)
    assert before[0, :, 0].tolist() == [50, 1, 0, 3, 4, 0]
    assert last[:, 0].tolist() == [6, 12]
