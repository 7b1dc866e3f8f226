"""Laws of Mamba-2's recurrence: its shared form equals the matrix recurrence of every head alone, however cut."""

import pytest
import torch
from laws import assert_near
from torch import Tensor

from noria.modeling.ops.matrix_recurrence import matrix_recurrence
from noria.modeling.ops.ssd import ssd

BATCH, HEADS, N, P = 2, 6, 5, 4
FORMS = ["parallel", "chunkwise", "fast", None]
LENGTHS = [1, 3, 64, 65, 200]
GROUPS = [1, 2, 6]


def make_inputs(length: int, groups: int = 2, scale: float = 1.0) -> list[Tensor]:
    """x, delta, decay, B, C, state."""
    torch.manual_seed(length)
    options = {"dtype": torch.float64}
    x, delta = torch.randn(BATCH, length, HEADS, P, **options), torch.rand(BATCH, length, HEADS, **options)
    decay = -scale * torch.rand(BATCH, length, HEADS, **options)
    B, C = (torch.randn(BATCH, length, groups, N, **options) for _ in range(2))
    return [x, delta, decay, B, C, torch.randn(BATCH, HEADS, N, P, **options)]


def make_segments(length: int) -> Tensor:
    """Row 0 goes on with the old sequence and is cut twice; row 1 begins anew at once."""
    places = torch.arange(length)
    cuts = [places >= cut for cut in (length // 3, length // 2)]
    return torch.stack([cuts[0].long() + cuts[1], 1 + cuts[1].long()])


def by_definition(x, delta, decay, B, C, state=None, segments=None) -> tuple[Tensor, Tensor]:
    """Every head by itself, token by token."""
    repeats = x.shape[2] // B.shape[2]
    q, k = (part.repeat_interleave(repeats, dim=2).transpose(1, 2) for part in (C, B))
    v, decay = (x * delta[..., None]).transpose(1, 2), decay.transpose(1, 2)
    y, final = matrix_recurrence(q, k, v, decay, state=state, segments=segments, form="sequential")
    return y.transpose(1, 2), final


def run(inputs: list[Tensor], compute, **options) -> list[Tensor]:
    """y, the final state, and the gradients of all inputs that are given."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    state = leaves[5] if len(leaves) > 5 else None
    y, final = compute(*leaves[:5], state=state, **options)
    torch.manual_seed(1)
    weights = [torch.randn(x.shape, dtype=torch.float64).to(x.dtype) for x in (y, final)]
    return [y.detach(), final.detach(), *torch.autograd.grad([y, final], leaves, weights)]


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("length", LENGTHS)
def test_forms_agree(length: int, groups: int, packed: bool) -> None:
    inputs = make_inputs(length, groups)
    options = {"segments": make_segments(length)} if packed else {}
    expected = run(inputs, by_definition, **options)
    for form in FORMS:
        assert_near(run(inputs, ssd, form=form, **options), expected, 1e-10)


def test_an_empty_state_is_zeros() -> None:
    inputs = make_inputs(70)
    expected = run([*inputs[:5], torch.zeros_like(inputs[5])], ssd)
    assert_near(run(inputs[:5], ssd), expected[:-1], 1e-12)


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_float32_is_precise(scale: float) -> None:
    inputs = [x.float() for x in make_inputs(600, scale=scale)]
    expected = run([x.double() for x in inputs], by_definition)
    for form in ("chunkwise", "fast"):
        assert_near(run(inputs, ssd, form=form), expected, 1e-5)


def test_long_sums_of_decay_stay_exact() -> None:
    inputs = [x.float() for x in make_inputs(130)]
    inputs[2][:, :40] = -100.0
    inputs[2][:, 40:] = -0.01
    expected = run([x.double() for x in inputs], by_definition)
    assert_near(run(inputs, ssd, form="fast"), expected, 1e-6)


@pytest.mark.parametrize("value", [-1e4, -torch.inf])
def test_decays_that_clear_the_state(value: float) -> None:
    inputs = make_inputs(130)
    inputs[2][:, ::2] = value
    expected = run(inputs, by_definition)
    for form in FORMS:
        assert_near(run(inputs, ssd, form=form), expected, 1e-10)


@pytest.mark.parametrize("form", ["chunkwise", "fast"])
def test_half_precision_is_summed_in_float32(form: str) -> None:
    inputs = make_inputs(100)
    half = [x.to(torch.bfloat16) for x in inputs]
    y, final = ssd(*half[:5], state=half[5], form=form)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    expected = run([x.double() for x in half], by_definition)
    assert_near([final], [expected[1]], 1e-5)
    found = run(half, ssd, form=form)
    assert all(part.dtype == torch.bfloat16 for part in found[2:])
    assert_near(found, expected, 2**-6)


@pytest.mark.parametrize("cut", [1, 63, 64, 100])
def test_a_carried_state_goes_on(cut: int) -> None:
    *inputs, state = make_inputs(150)
    y, final = ssd(*inputs, state=state)
    first, middle = ssd(*(x[:, :cut] for x in inputs), state=state)
    second, last = ssd(*(x[:, cut:] for x in inputs), state=middle)
    assert_near([torch.cat([first, second], dim=1), last], [y, final], 1e-12)


def test_strided_inputs() -> None:
    inputs = make_inputs(80)
    whole = torch.cat([part.flatten(2) for part in inputs[:5]], dim=-1)
    parts = whole.split([part.flatten(2).shape[-1] for part in inputs[:5]], dim=-1)
    views = [part.unflatten(2, like.shape[2:]) for part, like in zip(parts, inputs, strict=False)]
    assert not views[0].is_contiguous()
    assert_near(list(ssd(*views)), list(ssd(*inputs[:5])), 1e-12)


def test_one_operator_under_compile() -> None:
    inputs = make_inputs(70)
    compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager")
    assert_near(run(inputs, compiled, form="fast"), run(inputs, ssd, form="fast"), 1e-12)


def test_states_are_not_shared() -> None:
    *inputs, state = make_inputs(1)
    for form in FORMS:
        _, final = ssd(*inputs, state=state, form=form)
        assert final.data_ptr() != state.data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 3, 6)}, "x must be"),
        ({"delta": torch.randn(2, 3, 5)}, r"delta must be \(2, 3, 6\)"),
        ({"decay": torch.randn(2, 2, 6)}, r"decay must be \(2, 3, 6\)"),
        ({"B": torch.randn(2, 3, 1, N)}, "B and C must both be"),
        ({"B": torch.randn(2, 3, 4, N), "C": torch.randn(2, 3, 4, N)}, "6 heads cannot be shared out among 4"),
        ({"state": torch.randn(2, 6, P, N)}, "state must be"),
        ({"segments": torch.zeros(2, 3)}, "segments must be"),
        ({"delta": torch.ones(2, 3, 6, dtype=torch.int64)}, "delta must be real floating point"),
        ({"form": "quick"}, "quick"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    names = ("x", "delta", "decay", "B", "C", "state")
    given = dict(zip(names, make_inputs(3), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        ssd(**given)
