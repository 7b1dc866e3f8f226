"""Laws of the delta rule and of the recurrence with a bonus: all forms agree, whatever way a sequence is cut."""

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from laws import assert_near
from torch import Tensor

from noria.modeling.ops import delta_fast
from noria.modeling.ops.bonus_recurrence import bonus_recurrence
from noria.modeling.ops.delta_cell import block_size
from noria.modeling.ops.delta_rule import delta_rule
from noria.modeling.ops.dispatch import FORMS

B, H, DK, DV = 2, 3, 6, 5
LENGTHS = [1, 2, 3, 33, 64, 65, 300]
DELTA, CONSTANT, VARYING = "delta", "constant bonus", "varying bonus"
OPS = [DELTA, CONSTANT, VARYING]


def make_inputs(op: str, length: int, scale: float = 0.6, dk: int = DK, dv: int = DV) -> list[Tensor]:
    """The arguments in their order, the state last."""
    torch.manual_seed(length)
    q, k, a = (torch.randn(B, H, length, dk, dtype=torch.float64) for _ in range(3))
    v, state = torch.randn(B, H, length, dv, dtype=torch.float64), torch.randn(B, H, dk, dv, dtype=torch.float64)
    decay = -scale * torch.rand((H, dk) if op == CONSTANT else (B, H, length, dk), dtype=torch.float64)
    if op != DELTA:
        return [q, k, v, decay, torch.randn(H, dk, dtype=torch.float64), state]
    a = F.normalize(a, dim=-1)
    return [q, k, v, -a, a * torch.rand(B, H, length, 1, dtype=torch.float64), decay, state]


def make_segments(length: int) -> Tensor:
    """Row 0 goes on with the old sequence and is cut twice; row 1 begins anew at once."""
    positions = torch.arange(length)
    cuts = [positions >= cut for cut in (length // 3, length // 2)]
    return torch.stack([cuts[0].long() + cuts[1], 1 + cuts[1].long()])


def call(op: str, inputs: list[Tensor], **options) -> tuple[Tensor, Tensor]:
    function: Callable = delta_rule if op == DELTA else bonus_recurrence
    return function(*inputs[:-1], state=inputs[-1], **options)


def run(op: str, inputs: list[Tensor], form: str | None, segments: Tensor | None = None) -> list[Tensor]:
    """Return y, the final state, and the gradients of all inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y, final = call(op, leaves, form=form, segments=segments)
    torch.manual_seed(1)
    weights = [torch.randn(x.shape, dtype=torch.float64).to(x.dtype) for x in (y, final)]
    return [y.detach(), final.detach(), *torch.autograd.grad([y, final], leaves, weights, materialize_grads=True)]


@cache
def truth(op: str, length: int, scale: float, packed: bool) -> list[Tensor]:
    return run(op, make_inputs(op, length, scale), "sequential", make_segments(length) if packed else None)


def by_definition(op: str, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The equations, in einsum."""
    q, k, v, *rest, state = inputs
    outputs = []
    for t in range(q.shape[2]):
        added = torch.einsum("bhd,bhe->bhde", k[:, :, t], v[:, :, t])
        if op == DELTA:
            a, b, decay = (x[:, :, t] for x in rest)
            u = torch.einsum("bhd,bhde->bhe", a, state)
            state = decay.exp()[..., None] * state + torch.einsum("bhd,bhe->bhde", b, u) + added
            read = state
        else:
            decay, bonus = (rest[0] if op == CONSTANT else rest[0][:, :, t]), rest[1]
            read = state + bonus[..., None] * added
            state = decay.exp()[..., None] * state + added
        outputs.append(torch.einsum("bhd,bhde->bhe", q[:, :, t], read))
    return torch.stack(outputs, 2), state


@pytest.mark.parametrize("op", OPS)
def test_the_sequential_form_is_the_definition(op: str) -> None:
    inputs = make_inputs(op, 9)
    assert_near(list(call(op, inputs, form="sequential")), list(by_definition(op, inputs)), 1e-12)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("op", OPS)
def test_forms_agree(op: str, length: int, packed: bool) -> None:
    inputs, segments = make_inputs(op, length), make_segments(length) if packed else None
    for form in (*FORMS[1:], None):
        assert_near(run(op, inputs, form, segments), truth(op, length, 0.6, packed), 1e-10)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("scale", [8.0, 100.0, 1e4])
def test_strong_decay_takes_shorter_blocks(scale: float, packed: bool) -> None:
    inputs, segments = make_inputs(DELTA, 70, scale), make_segments(70) if packed else None
    for form in ("chunkwise", "fast"):
        assert_near(run(DELTA, inputs, form, segments), truth(DELTA, 70, scale, packed), 1e-10)
    assert block_size(inputs[5], torch.float32) < block_size(inputs[5] / scale * 0.6, torch.float32) == 32


@pytest.mark.parametrize("scale", [0.01, 0.6, 8.0, 50.0])
def test_float32_is_precise(scale: float) -> None:
    inputs = [x.float() for x in make_inputs(DELTA, 600, scale, dk=16, dv=17)]
    expected = run(DELTA, [x.double() for x in inputs], "sequential")
    for form in ("chunkwise", "fast"):
        assert_near(run(DELTA, inputs, form), expected, 5e-6)


@pytest.mark.parametrize("form", ["sequential", "chunkwise", "fast"])
def test_decays_that_clear_the_state(form: str) -> None:
    inputs = make_inputs(DELTA, 70)
    inputs[5][:, :, ::2] = -torch.inf
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        cast = [x.to(dtype) for x in inputs]
        found = run(DELTA, cast, form)
        assert_near(found, run(DELTA, [x.double() for x in cast], "sequential"), tolerance)


@pytest.mark.parametrize("form", ["sequential", *FORMS[2:]])
@pytest.mark.parametrize("op", OPS)
def test_half_precision_inputs_are_summed_in_float32(op: str, form: str) -> None:
    half = [x.to(torch.bfloat16) for x in make_inputs(op, 100)]
    half[-1] = half[-1].float()
    y, final = call(op, half, form=form)
    exact, state = call(op, [x.double() for x in half], form="sequential")
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert_near([final], [state], 1e-5)
    assert_near([y], [exact], 2**-6)
    assert all(g.dtype == x.dtype for g, x in zip(run(op, half, form)[2:], half, strict=True))


def test_autocast_stays_outside() -> None:
    inputs = [x.float() for x in make_inputs(DELTA, 70)]
    for form in ("sequential", *FORMS[2:]):
        plain = call(DELTA, inputs, form=form)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = call(DELTA, inputs, form=form)
        assert all(torch.equal(x, y) for x, y in zip(plain, cast, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_strides_do_not_matter(op: str) -> None:
    inputs = make_inputs(op, 70)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() == 4 else x for x in inputs[:-1]]
    for form in ("sequential", *FORMS[2:]):
        expected = call(op, inputs, form=form)
        assert_near(list(call(op, [*turned, inputs[-1]], form=form)), list(expected), 1e-12)


@pytest.mark.parametrize("form", ["sequential", *FORMS[2:], None])
@pytest.mark.parametrize("op", OPS)
def test_state_carries(op: str, form: str | None) -> None:
    *inputs, state = make_inputs(op, 300)
    segments = make_segments(300)
    whole, final = call(op, [*inputs, state], segments=segments, form=form)
    parts, start, before = [], 0, torch.zeros(B, 1, dtype=torch.long)
    for stop in (1, 2, 99, 101, 290, 300):
        cut = slice(start, stop)
        tokens = [x[:, :, cut] if x.dim() == 4 else x for x in inputs]
        y, state = call(op, [*tokens, state], segments=segments[:, cut] - before, form=form)
        parts, start, before = [*parts, y], stop, segments[:, stop - 1 : stop]
    assert_near([torch.cat(parts, 2), state], [whole, final], 1e-10)


@pytest.mark.parametrize("form", ["sequential", *FORMS[2:]])
def test_what_is_left_out_is_neutral(form: str) -> None:
    inputs = make_inputs(DELTA, 40)
    known = call(DELTA, inputs, form=form)
    gaps = [F.pad(x, (0, 0, 3, 4)) for x in inputs[:-1]]  # k, b and decay of zero
    y, final = call(DELTA, [*gaps, inputs[-1]], form=form)
    assert_near([y[:, :, 3:-4], final], list(known), 1e-12)
    without = delta_rule(*inputs[:5], state=inputs[-1], form=form)
    per_token = delta_rule(*inputs[:5], torch.zeros(B, H, 40), state=inputs[-1], form=form)
    assert_near(list(without), list(per_token), 1e-12)


def test_gradient_of_the_final_state_alone() -> None:
    inputs = make_inputs(DELTA, 70)
    found = []
    for form in ("sequential", "chunkwise", "fast"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        call(DELTA, leaves, form=form)[1].square().sum().backward()
        assert leaves[0].grad is None or leaves[0].grad.abs().max() == 0
        found.append([x.grad for x in leaves[1:]])
    assert_near(found[1], found[0], 1e-10)
    assert_near(found[2], found[0], 1e-10)


@pytest.mark.parametrize("shape", [(37, 1), (5, 4), (1, 40)])
def test_many_heads_and_rows(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    q, k, v, a = torch.randn(4, *shape, 40, 4, dtype=torch.float64).unbind()
    a = F.normalize(a, dim=-1)
    inputs = [q, k, v, -a, a, -torch.rand_like(q), q[:, :, :4].clone()]
    segments = (torch.arange(40) // 15).expand(shape[0], -1)
    assert_near(run(DELTA, inputs, "fast", segments), run(DELTA, inputs, "sequential", segments), 1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (B, H, 5)}, "q, k, a and b must"),
        ({"b": (B, H, 6, DK)}, "q, k, a and b must"),
        ({"v": (B, H, 6, DV)}, "v must"),
        ({"decay": (H, DK)}, "decay must"),
        ({"state": (B, H, DV, DK)}, "state must"),
        ({"segments": (B, 4)}, "segments must"),
        (
            {"q": (B, H, 0, DK), "k": (B, H, 0, DK), "v": (B, H, 0, DV), "a": (B, H, 0, DK), "b": (B, H, 0, DK)},
            "least",
        ),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = dict.fromkeys("qkab", (B, H, 5, DK)) | {"v": (B, H, 5, DV)} | change
    arguments = {name: torch.zeros(shape) for name, shape in shapes.items()}
    if "segments" in arguments:
        arguments["segments"] = arguments["segments"].long()
    with pytest.raises(ValueError, match=message):
        delta_rule(**arguments)


def test_wrong_forms_and_sizes_of_the_bonus_are_named() -> None:
    x, table = torch.zeros(B, H, 5, DK), torch.zeros(H, DK)
    with pytest.raises(ValueError, match="form must be one of"):
        delta_rule(x, x, x, x, x, form="chunked")
    with pytest.raises(ValueError, match="bonus must be"):
        bonus_recurrence(x, x, x, table, table[0])
    with pytest.raises(ValueError, match="decay must be"):
        bonus_recurrence(x, x, x, table[:2], table)


def test_custom_operator_is_sound() -> None:
    inputs = [x.requires_grad_() for x in make_inputs(DELTA, 300)]
    torch.library.opcheck(
        delta_fast._forward_op,
        (*inputs, None, True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    found = delta_fast._forward_op(*inputs, None, True)
    gradients = torch.autograd.grad([x.sum() for x in found[:2]], inputs)
    eager = torch.autograd.grad([x.sum() for x in delta_fast.fast(*inputs, None)], inputs)
    assert all(torch.equal(x, y) for x, y in zip(gradients, eager, strict=True))


@pytest.mark.slow
def test_compiles_whole() -> None:
    def layer(segments: Tensor | None, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, final = call(DELTA, [inputs[0].sin(), *inputs[1:]], segments=segments)
        return y.transpose(1, 2).flatten(2).cos(), final.sin()

    compiled = torch.compile(layer, fullgraph=True)
    for length, segments in ((70, None), (130, make_segments(130)), (1, None)):
        inputs = [x.requires_grad_() for x in make_inputs(DELTA, length)]
        found, known = compiled(segments, *inputs), layer(segments, *inputs)
        assert_near([x.detach() for x in found], [x.detach() for x in known], 1e-12)
        gradients = [torch.autograd.grad([x.sum() for x in out], inputs) for out in (found, known)]
        assert_near(*gradients, 1e-10)


@pytest.mark.parametrize("op", [DELTA, VARYING])
def test_exports_with_an_open_length(op: str) -> None:
    class Layer(torch.nn.Module):
        def forward(self, segments: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            return call(op, list(inputs), segments=segments)

    make = partial(make_inputs, op)
    length = torch.export.Dim("length", min=2, max=1 << 16)
    tokens = tuple({2: length} if x.dim() == 4 else {} for x in make(70)[:-1])
    shapes = ({1: length}, (*tokens, {}))
    program = torch.export.export(Layer(), (make_segments(70), *make(70)), dynamic_shapes=shapes)
    for other in (2, 129, 300):
        given = (make_segments(other), *make(other))
        assert_near(list(program.module()(*given)), list(Layer()(*given)), 1e-10)
