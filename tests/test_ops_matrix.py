"""Laws of the matrix-state recurrence: all forms agree, in value and gradient, whatever way a sequence is cut."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from laws import assert_near
from torch import Tensor

import noria.modeling.ops.matrix_fast as matrix_fast
from noria.modeling.ops import matrix_kernels
from noria.modeling.ops.matrix_recurrence import matrix_recurrence

B, H, DK, DV = 2, 3, 6, 5
DECAYS = ["none", "head", "token", "channel"]
FORMS = ["parallel", "chunkwise", "fast"]
LENGTHS = [1, 3, 7, 64, 65, 200]


def make_decay(kind: str, length: int, scale: float = 1.0, dk: int = DK) -> Tensor | None:
    shape = {"head": (H,), "token": (B, H, length), "channel": (B, H, length, dk)}.get(kind)
    return None if shape is None else -scale * torch.rand(shape, dtype=torch.float64)


def make_inputs(kind: str, length: int, scale: float = 1.0, dk: int = DK, dv: int = DV) -> list[Tensor | None]:
    torch.manual_seed(length)
    q, k = (torch.randn(B, H, length, dk, dtype=torch.float64) for _ in range(2))
    v, state = torch.randn(B, H, length, dv, dtype=torch.float64), torch.randn(B, H, dk, dv, dtype=torch.float64)
    return [q, k, v, make_decay(kind, length, scale, dk), state]


def make_segments(length: int) -> Tensor:
    """Row 0 goes on with the old sequence and is cut twice; row 1 begins anew at once."""
    positions = torch.arange(length)
    cuts = [positions >= cut for cut in (length // 3, length // 2)]
    return torch.stack([cuts[0].long() + cuts[1], 1 + cuts[1].long()])


def run(inputs: list[Tensor | None], form: str | None, segments: Tensor | None = None) -> list[Tensor]:
    """Return y, the final state, and the gradients of all inputs that are given."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    y, final = matrix_recurrence(*leaves[:4], state=leaves[4], segments=segments, form=form)
    torch.manual_seed(1)
    weights = [torch.randn(x.shape, dtype=torch.float64).to(x.dtype) for x in (y, final)]
    given = [x for x in leaves if x is not None]
    return [y.detach(), final.detach(), *torch.autograd.grad([y, final], given, weights, materialize_grads=True)]


@cache
def truth(kind: str, length: int, with_state: bool, packed: bool) -> list[Tensor]:
    inputs = make_inputs(kind, length)
    inputs[4] = inputs[4] if with_state else None
    return run(inputs, "sequential", make_segments(length) if packed else None)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("with_state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", DECAYS)
def test_forms_agree(kind: str, length: int, with_state: bool, packed: bool) -> None:
    inputs = make_inputs(kind, length)
    inputs[4] = inputs[4] if with_state else None
    for form in (*FORMS, None):
        found = run(inputs, form, make_segments(length) if packed else None)
        assert_near(found, truth(kind, length, with_state, packed), 1e-10)


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("kind", DECAYS[1:])
def test_float32_is_precise(kind: str, scale: float) -> None:
    inputs = [x.float() for x in make_inputs(kind, 600, scale, dk=16, dv=17)]
    expected = run([x.double() for x in inputs], "sequential")
    for form in ("chunkwise", "fast"):
        assert_near(run(inputs, form), expected, 1e-5)


@pytest.mark.parametrize("form", ["chunkwise", "fast"])
def test_uniformly_strong_decay_has_precise_gradients(form: str) -> None:
    inputs = [x.float() for x in make_inputs("token", 150)]
    inputs[3] = torch.full_like(inputs[3], -8.0)
    for found, known in zip(run(inputs, form), run([x.double() for x in inputs], "sequential"), strict=True):
        assert (found - known).abs().max() <= 1e-5 * known.abs().max()


@pytest.mark.parametrize("value", [-1e4, -torch.inf])
@pytest.mark.parametrize("kind", DECAYS[1:])
def test_decays_that_clear_the_state(kind: str, value: float) -> None:
    inputs = make_inputs(kind, 130)
    inputs[3][..., ::2] = value
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        cast = [x.to(dtype) for x in inputs]
        expected = run([x.double() for x in cast], "sequential")
        for form in FORMS:
            assert_near(run(cast, form), expected, tolerance)


@pytest.mark.parametrize("form", ["sequential", *FORMS])
@pytest.mark.parametrize("kind", DECAYS)
def test_half_precision_inputs_are_summed_in_float32(kind: str, form: str) -> None:
    inputs = make_inputs(kind, 100)
    half = [x if x is None else x.to(torch.bfloat16) for x in inputs]
    y, final = matrix_recurrence(*half[:4], state=half[4].float(), form=form)
    exact, state = matrix_recurrence(*(x if x is None else x.double() for x in half[:4]), state=half[4].double())
    assert y.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    assert_near([final], [state], 1e-5)
    assert_near([y], [exact], 2**-8)
    grads = run(half, form)[2:]
    assert all(g.dtype == torch.bfloat16 for g in grads)
    assert_near(grads, run([x if x is None else x.double() for x in half], "sequential")[2:], 2**-6)


def test_autocast_stays_outside() -> None:
    inputs = [x if x is None else x.float() for x in make_inputs("token", 70)]
    for form in ("sequential", *FORMS):
        plain = matrix_recurrence(*inputs[:4], state=inputs[4], form=form)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = matrix_recurrence(*inputs[:4], state=inputs[4], form=form)
        assert all(torch.equal(x, y) for x, y in zip(plain, cast, strict=True))


@pytest.mark.parametrize("kind", DECAYS)
def test_strides_do_not_matter(kind: str) -> None:
    inputs = make_inputs(kind, 70)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:3]]
    sliced = [torch.stack([x, x], -1)[..., 0] for x in inputs[:3]]
    for form in ("sequential", *FORMS):
        expected = matrix_recurrence(*inputs[:4], state=inputs[4], form=form)
        for views in (turned, sliced):
            found = matrix_recurrence(*views, inputs[3], state=inputs[4], form=form)
            assert_near(list(found), list(expected), 1e-12)


@pytest.mark.parametrize("form", ["sequential", *FORMS, None])
@pytest.mark.parametrize("kind", DECAYS)
def test_state_carries(kind: str, form: str | None) -> None:
    q, k, v, decay, state = make_inputs(kind, 150)
    segments = make_segments(150)
    whole, final = matrix_recurrence(q, k, v, decay, state=state, segments=segments, form=form)
    parts, start, before = [], 0, torch.zeros(B, 1, dtype=torch.long)
    for stop in (1, 2, 49, 51, 130, 150):
        cut = slice(start, stop)
        token_decay = decay if kind in ("none", "head") else decay[:, :, cut]
        y, state = matrix_recurrence(
            q[:, :, cut],
            k[:, :, cut],
            v[:, :, cut],
            token_decay,
            state=state,
            segments=segments[:, cut] - before,
            form=form,
        )
        parts, start, before = [*parts, y], stop, segments[:, stop - 1 : stop]
    assert_near([torch.cat(parts, 2), state], [whole, final], 1e-10)


def test_gradient_of_the_final_state_alone() -> None:
    inputs = make_inputs("channel", 70)
    for form in FORMS:
        leaves = [x.clone().requires_grad_() for x in inputs]
        matrix_recurrence(*leaves[:4], state=leaves[4], form=form)[1].square().sum().backward()
        known = [x.clone().requires_grad_() for x in inputs]
        matrix_recurrence(*known[:4], state=known[4], form="sequential")[1].square().sum().backward()
        assert leaves[0].grad is None or leaves[0].grad.abs().max() == 0
        assert_near([x.grad for x in leaves[1:]], [x.grad for x in known[1:]], 1e-10)


@pytest.mark.parametrize("shape", [(37, 1), (5, 4), (1, 40)])
def test_many_heads_and_rows(shape: tuple[int, int]) -> None:
    q, k, v = torch.randn(3, *shape, 70, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    inputs = [q, k, v, -torch.rand(shape[1], dtype=torch.float64), q[:, :, :4]]
    assert_near(run(inputs, "fast"), run(inputs, "sequential"), 1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (B, H, 5)}, "q and k must"),
        ({"k": (B, H, 6, DK)}, "q and k must"),
        ({"v": (B, H, 6, DV)}, "v must"),
        ({"decay": (B, 5)}, "decay must"),
        ({"decay": (B, H, 5, DK + 1)}, "decay must"),
        ({"state": (B, H, DV, DK)}, "state must"),
        ({"segments": (B, 4)}, "segments must"),
        ({"q": (B, H, 0, DK), "k": (B, H, 0, DK), "v": (B, H, 0, DV)}, "at least one token"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {"q": (B, H, 5, DK), "k": (B, H, 5, DK), "v": (B, H, 5, DV)} | change
    arguments = {name: torch.zeros(shape) for name, shape in shapes.items()}
    if "segments" in arguments:
        arguments["segments"] = arguments["segments"].long()
    with pytest.raises(ValueError, match=message):
        matrix_recurrence(**arguments)


def test_wrong_forms_and_segments_are_named() -> None:
    x = torch.zeros(B, H, 5, DK)
    with pytest.raises(ValueError, match="form must be one of"):
        matrix_recurrence(x, x, x, form="chunked")
    with pytest.raises(ValueError, match="segments must"):
        matrix_recurrence(x, x, x, segments=torch.zeros(B, 5))


@pytest.mark.parametrize("kind", DECAYS)
def test_custom_operator_is_sound(kind: str) -> None:
    inputs = [x if x is None else x.requires_grad_() for x in make_inputs(kind, 70)]
    torch.library.opcheck(
        matrix_fast._forward_op,
        (*inputs, True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    found = matrix_fast._forward_op(*inputs, True)
    given = [x for x in inputs if x is not None]
    gradients = torch.autograd.grad([x.sum() for x in found[:2]], given)
    eager = torch.autograd.grad([x.sum() for x in matrix_fast.fast(*inputs)], given)
    assert all(torch.equal(x, y) for x, y in zip(gradients, eager, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["head", "channel"])
def test_compiles_whole(kind: str) -> None:
    def layer(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, final = matrix_recurrence(q.sin(), k, v, decay, state=state)
        return y.transpose(1, 2).flatten(2).cos(), final.sin()

    compiled = torch.compile(layer, fullgraph=True)
    for length in (70, 130, 1):
        inputs = [x.requires_grad_() for x in make_inputs(kind, length)]
        found, known = compiled(*inputs), layer(*inputs)
        assert_near([x.detach() for x in found], [x.detach() for x in known], 1e-12)
        gradients = [torch.autograd.grad([x.sum() for x in out], inputs) for out in (found, known)]
        assert_near(*gradients, 1e-10)


@pytest.mark.parametrize("kind", ["none", "channel"])
def test_exports_with_an_open_length(kind: str) -> None:
    class Layer(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            *inputs, segments = inputs
            q, k, v, state, decay = *inputs[:3], inputs[-1], inputs[3] if len(inputs) == 5 else None
            return matrix_recurrence(q, k, v, decay, state=state, segments=segments)

    def given(length: int) -> tuple[Tensor, ...]:
        return (*(x for x in make_inputs(kind, length) if x is not None), make_segments(length))

    length = torch.export.Dim("length", min=2, max=1 << 16)
    tokens = ({2: length},) * (len(given(70)) - 2)
    program = torch.export.export(Layer(), given(70), dynamic_shapes=((*tokens, {}, {1: length}),))
    for other in (2, 64, 129, 300):
        assert_near(list(program.module()(*given(other))), list(Layer()(*given(other))), 1e-10)


def forget_copy(name: str) -> None:
    for known in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[known]


def load_copy(name: str) -> object:
    """Import the folder of operators once more, as a package of another name."""
    folder = Path(matrix_fast.__file__).parent
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    forget_copy(name)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.matrix_fast")


def test_copies_of_the_module_live_side_by_side() -> None:
    inputs = make_inputs("head", 70)
    expected = matrix_fast._forward_op(*inputs, True)
    for name in ("noria_copy_a", "noria_copy_b", "noria_copy_a"):
        copy = load_copy(name)
        assert copy._NAMESPACE != matrix_fast._NAMESPACE
        for module in (copy, matrix_fast):
            assert all(torch.equal(x, y) for x, y in zip(module._forward_op(*inputs, True), expected, strict=True))
        forget_copy(name)


@pytest.mark.parametrize("kind", DECAYS)
def test_other_kernels_get_their_own_layout(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in computes by the definition, in the layout and with the arguments that fla.ops documents."""

    def stand_in(q, k, v, g=None, scale=None, initial_state=None, output_final_state=False):
        assert (scale, output_final_state) == (1.0, True)
        q, k, v, g = (x.transpose(1, 2) for x in (q, k, v, g))
        y, final = matrix_recurrence(q, k, v, g, state=initial_state, form="sequential")
        return y.transpose(1, 2), final

    inputs = [x if x is None else x.to(torch.bfloat16) for x in make_inputs(kind, 9)]
    inputs[4] = inputs[4].float()
    assert matrix_kernels.by_other_kernel(*inputs) is None
    expected = matrix_recurrence(*inputs[:4], state=inputs[4], form="sequential")
    monkeypatch.setattr(matrix_kernels, "optional_kernel", lambda *_: stand_in)
    assert all(torch.equal(x, y) for x, y in zip(matrix_kernels.by_other_kernel(*inputs), expected, strict=True))
    assert matrix_kernels.by_other_kernel(*(x if x is None else x.float() for x in inputs)) is None
