"""Laws of the diagonal recurrence and of the selective scan: every form is the sequential one."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import noria.modeling.ops.diagonal_scan
import noria.modeling.ops.selective_blocks
from noria.modeling.ops.diagonal_recurrence import diagonal_recurrence
from noria.modeling.ops.selective_scan import selective_scan

LENGTHS = (1, 3, 7, 64, 65, 200)
FORMS = ("associative", "parallel", "chunkwise", "fast", None)
SCAN_FORMS = ("chunkwise", "fast", None)
B, H, D, N = 2, 3, 5, 4


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def packed(length: int, first: int = 0) -> Tensor:
    """Segments that begin in the midst of chunks, at other places in each row; row 0 continues the initial state."""
    starts = torch.zeros(B, length, dtype=torch.long)
    starts[1, 0] = 1
    starts[0, length // 3 :: max(1, length // 3)] = 1
    starts[1, length // 2 :: max(1, length // 4)] = 1
    return starts.cumsum(1) + first


def decays(kind: str, length: int, dtype: torch.dtype) -> Tensor:
    shape = {"token": (B, length, H, D), "shared": (B, length, 1, D), "row": (1, length, H, 1), "constant": (H, D)}[
        kind
    ]
    size = torch.rand(shape, dtype=torch.float64) ** 0.3
    sign = torch.randn(shape, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    return (size * sign / sign.abs()).to(dtype)


def diagonal_case(kind: str, length: int, dtype: torch.dtype) -> list[Tensor]:
    return [decays(kind, length, dtype), torch.randn(B, length, H, D, dtype=dtype), torch.randn(B, H, D, dtype=dtype)]


def scan_case(length: int, dtype: torch.dtype) -> list[Tensor]:
    u, state = torch.randn(B, length, D, dtype=dtype), torch.randn(B, D, N, dtype=dtype)
    delta, rate = torch.rand(B, length, D, dtype=dtype) * 2, -4 * torch.rand(D, N, dtype=dtype)
    return [u, delta, rate, *torch.randn(2, B, length, N, dtype=dtype), state]


def recur(inputs, segments=None, form=None):
    a, b, *state = inputs
    return diagonal_recurrence(a, b, state=state[0] if state else None, segments=segments, form=form)


def select(inputs, segments=None, form=None):
    return selective_scan(*inputs[:5], state=inputs[5] if len(inputs) > 5 else None, segments=segments, form=form)


def with_gradients(function, inputs, *args) -> list[Tensor]:
    """Outputs, final state and the gradients of one fixed random loss in both."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(inputs, *args)
    weights = torch.Generator().manual_seed(1)
    loss = sum(
        (x * torch.randn(x.shape, generator=weights, dtype=torch.float64).to(x.dtype)).sum().abs() for x in outputs
    )
    return [*(x.detach() for x in outputs), *torch.autograd.grad(loss, inputs)]


def assert_close(found, expected, tolerance: float):
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        assert torch.isfinite(torch.view_as_real(x) if x.is_complex() else x).all()
        assert (x - y).abs().max() <= tolerance * max(1.0, y.abs().max().item())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["token", "shared", "row", "constant"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_forms_agree(kind, length, dtype):
    inputs = diagonal_case(kind, length, dtype)
    for given in (inputs, inputs[:2]):
        for segments in (None, packed(length)):
            expected = with_gradients(recur, given, segments, "sequential")
            for form in FORMS:
                assert_close(with_gradients(recur, given, segments, form), expected, 1e-10)


@pytest.mark.parametrize(("length", "channels"), [(1500, ()), (1500, (7,)), (300, (600,)), (300, (2100,))], ids=str)
def test_fast_form_at_every_width(length, channels):
    """The scan cuts narrow rows into chunks and wide ones not; neither the cut nor the last, shorter block shows."""
    for shape in ((2, length, *channels), channels):
        inputs = [torch.rand(shape), torch.randn(2, length, *channels), torch.randn(2, *channels)]
        double = [x.double() for x in inputs]
        expected = with_gradients(recur, double, None, "associative")
        assert_close(with_gradients(recur, double, None, "fast"), expected, 1e-10)
        assert_close(with_gradients(recur, inputs, None, "fast"), expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_single_precision(form, dtype):
    inputs = diagonal_case("token", 200, dtype)
    wide = [x.to(torch.complex128 if dtype.is_complex else torch.float64) for x in inputs]
    assert_close(with_gradients(recur, inputs, None, form), with_gradients(recur, wide, None, "sequential"), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_gradients_are_the_numerical_ones(dtype):
    for kind in ("token", "constant"):
        inputs = [x.requires_grad_() for x in diagonal_case(kind, 5, dtype)]
        assert torch.autograd.gradcheck(lambda *x: recur(x, packed(5), "fast"), inputs)


@pytest.mark.parametrize("form", ["sequential", *FORMS])
def test_real_and_complex_mix(form):
    """Real inputs under complex decays give complex states and real gradients, and so the other way round."""
    a, b, state = diagonal_case("constant", 20, torch.complex128)
    for given in ([a, b.real, state], [a, b.real, state.real], [a.real, b, state]):
        expected = recur([x.to(torch.complex128) for x in given], None, "sequential")
        found = with_gradients(recur, given, None, form)
        assert_close(found[:2], expected, 1e-10)
        assert [x.dtype for x in found[2:]] == [x.dtype for x in given]


@pytest.mark.parametrize("form", ["sequential", *FORMS])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_in_single(form, half):
    a, b, _ = (x.to(half) for x in diagonal_case("token", 65, torch.float64))
    h, final = diagonal_recurrence(a, b, form=form)
    assert h.dtype == half
    assert final.dtype == torch.float32
    _, exact = diagonal_recurrence(a.double(), b.double(), form="sequential")
    assert_close([final.double()], [exact], 1e-5)
    h, final = diagonal_recurrence(torch.polar(a.abs().float(), a.float()), b, form=form)
    assert h.dtype == final.dtype == torch.complex64


@pytest.mark.parametrize("form", FORMS)
def test_zero_decay_forgets(form):
    """A decay of zero is no special case: no form divides by a product of decays."""
    a, b, state = diagonal_case("token", 150, torch.float64)
    a[:, 40:90] = 0
    found = with_gradients(recur, [a, b, state], None, form)
    assert_close(found, with_gradients(recur, [a, b, state], None, "sequential"), 1e-10)
    assert torch.equal(found[0][:, 40:90], b[:, 40:90])


@pytest.mark.parametrize("form", ["sequential", *FORMS])
def test_packed_is_separate(form):
    a, b, state = diagonal_case("token", 60, torch.float64)
    segments = torch.tensor([0] * 25 + [1] * 35).expand(B, 60)
    h, final = diagonal_recurrence(a, b, state=state, segments=segments, form=form)
    first, _ = diagonal_recurrence(a[:, :25], b[:, :25], state=state, form="sequential")
    second, last = diagonal_recurrence(a[:, 25:], b[:, 25:], form="sequential")
    assert_close([h, final], [torch.cat([first, second], 1), last], 1e-10)


def cuts(length: int) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(2)
    random = [torch.randperm(length - 1, generator=drawn)[:k].add(1).sort()[0].tolist() for k in (2, 5, 11)]
    return [*random, list(range(1, 20))]


@pytest.mark.parametrize("form", ["sequential", *FORMS])
@pytest.mark.parametrize("packing", [False, True])
def test_carry(form, packing):
    """A sequence in pieces, the state handed on, is the whole sequence; gradients flow through the state."""
    length = 140
    segments = packed(length) if packing else None
    for inputs, run, whole in (
        (diagonal_case("token", length, torch.float64), recur, {2}),
        (scan_case(length, torch.float64), select, {2, 5}),
    ):
        scan_form = form if run is recur or form != "associative" else "parallel"

        def in_pieces(x, *_, run=run, whole=whole, scan_form=scan_form, edges=()):
            state, outputs = x[-1], []
            for start, end in zip([0, *edges], [*edges, length], strict=True):
                piece = [v if i in whole else v[:, start:end] for i, v in enumerate(x[:-1])]
                part = None
                if segments is not None:
                    before = segments[:, start - 1 : start] if start else torch.zeros_like(segments[:, :1])
                    part = segments[:, start:end] - before
                y, state = run([*piece, state], part, scan_form)
                outputs.append(y)
            return torch.cat(outputs, 1), state

        expected = with_gradients(run, inputs, segments, "sequential")
        for edges in cuts(length):
            found = with_gradients(lambda x, edges=edges, f=in_pieces: f(x, edges=edges), inputs)
            assert_close(found, expected, 1e-10)


@pytest.mark.parametrize("form", ["sequential", *FORMS])
def test_strides_do_not_matter(form):
    a, b, state = diagonal_case("token", 70, torch.float64)
    twisted = [x.transpose(1, -1).contiguous().transpose(1, -1) for x in (a, b, state)]
    sliced = [torch.stack([x, x], -1)[..., 0] for x in (a, b, state)]
    expected = with_gradients(recur, [a, b, state], None, "sequential")
    for inputs in (twisted, sliced):
        outputs = recur(inputs, None, form)
        assert_close(outputs, expected[:2], 1e-10)
    inputs = scan_case(70, torch.float64)
    twisted = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    if form != "associative":
        assert_close(select(twisted, None, form), select(inputs, None, "sequential"), 1e-10)


def test_inputs_are_left_alone():
    for run, inputs in ((recur, diagonal_case("token", 70, torch.float32)), (select, scan_case(70, torch.float32))):
        before = [x.clone() for x in inputs]
        with_gradients(run, inputs, None, "fast")
        run(inputs, None, "fast")
        assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("form", SCAN_FORMS)
def test_scan_forms_agree(form, length):
    inputs = scan_case(length, torch.float64)
    for given in (inputs, inputs[:5]):
        for segments in (None, packed(length)):
            expected = with_gradients(select, given, segments, "sequential")
            assert_close(with_gradients(select, given, segments, form), expected, 1e-10)
    single = [x.float() for x in inputs]
    assert_close(with_gradients(select, single, None, form), with_gradients(select, inputs, None, "sequential"), 1e-5)


def test_scan_gradients_are_the_numerical_ones():
    inputs = [x.requires_grad_() for x in scan_case(5, torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: select(x, packed(5), "fast"), inputs)


@pytest.mark.parametrize("form", ["sequential", *SCAN_FORMS])
def test_scan_step_size_zero_changes_nothing(form):
    """What a mixer does at padding: the state passes through."""
    u, delta, rate, into, out, state = scan_case(30, torch.float64)
    delta[:, 10:] = 0
    expected = selective_scan(
        u[:, :10], delta[:, :10], rate, into[:, :10], out[:, :10], state=state, form="sequential"
    )
    assert_close([select([u, delta, rate, into, out, state], None, form)[1]], [expected[1]], 1e-10)


@pytest.mark.parametrize("form", ["sequential", *SCAN_FORMS])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_scan_is_accurate_at_every_step_size(form, scale):
    u, delta, rate, into, out, state = scan_case(300, torch.float64)
    inputs = [u, delta * scale, rate * 4, into, out, state]
    expected = with_gradients(select, inputs, None, "sequential")
    assert_close(with_gradients(select, [x.float() for x in inputs], None, form), expected, 1e-5)


@pytest.mark.parametrize("form", ["sequential", *SCAN_FORMS])
def test_scan_half_precision(form):
    u, delta, rate, into, out, _ = scan_case(65, torch.float32)
    half = [x.bfloat16() for x in (u, delta, into, out)]
    run = [half[0], half[1], rate, half[2], half[3]]
    y, final = select(run, None, form)
    assert y.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    exact, last = select([x.double() for x in run], None, "sequential")
    assert_close([final.double()], [last], 1e-5)
    assert_close([y.double()], [exact], 1e-2)
    gradients = with_gradients(select, run, None, form)[2:]
    assert [x.dtype for x in gradients] == [x.dtype for x in run]


def test_scan_ignores_autocast():
    inputs = scan_case(40, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(select, inputs, None, "fast")
    assert_close(found, with_gradients(select, inputs, None, "fast"), 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": torch.ones(3)}, "b must be"),
        ({"b": torch.ones(2, 0, 3)}, "at least one token"),
        ({"b": torch.ones(2, 4, 3, dtype=torch.long)}, "b must be real or complex"),
        ({"a": torch.ones(4)}, r"not \(4,\)"),
        ({"a": torch.ones(2, 5, 3)}, r"not \(2, 5, 3\)"),
        ({"a": torch.ones(4, 3)}, r"not \(4, 3\)"),
        ({"state": torch.ones(2, 4)}, r"state must be \(2, 3\)"),
        ({"state": torch.ones(2, 3, dtype=torch.complex64)}, "state must be real"),
        ({"segments": torch.zeros(2, 3, dtype=torch.long)}, r"segments must be \(2, 4\)"),
        ({"segments": torch.zeros(2, 4)}, "integers"),
        ({"form": "quick"}, "quick"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"a": torch.ones(2, 4, 3), "b": torch.ones(2, 4, 3), **change}
    with pytest.raises(ValueError, match=message):
        diagonal_recurrence(arguments.pop("a"), arguments.pop("b"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.ones(2, 4)}, "u and delta"),
        ({"delta": torch.ones(2, 5, D)}, "u and delta"),
        ({"A": torch.ones(N, D)}, "A must be"),
        ({"B": torch.ones(2, 4, 9)}, "B must be"),
        ({"C": torch.ones(2, 4, N, dtype=torch.complex64)}, "C must be real"),
        ({"state": torch.ones(2, N, D)}, "state must be"),
        ({"segments": torch.zeros(2, 4)}, "segments must be"),
        ({"form": "quick"}, "quick"),
    ],
)
def test_bad_scan_input_is_named(change, message):
    names = ("u", "delta", "A", "B", "C", "state")
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**dict(zip(names, scan_case(4, torch.float32), strict=True)), **change})


def test_fast_form_refuses_a_second_derivative():
    a, b, _ = diagonal_case("token", 5, torch.float64)
    b.requires_grad_()
    (gradient,) = torch.autograd.grad(diagonal_recurrence(a, b, form="fast")[0].pow(2).sum(), b, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def compiled_equals_eager(backend: str):
    cases = [
        (recur, diagonal_case("token", 70, torch.float32)),
        (recur, diagonal_case("constant", 70, torch.complex64)),
        (select, scan_case(70, torch.float32)),
    ]
    for run, inputs in cases:
        for segments in (None, packed(70)):
            torch._dynamo.reset()
            program = torch.compile(run, fullgraph=True, backend=backend)
            found = with_gradients(program, inputs, segments)
            assert_close(found, with_gradients(run, inputs, segments), 1e-5)


def test_compiles_into_one_graph():
    compiled_equals_eager("aot_eager")


@pytest.mark.slow
def test_compiles_with_inductor():
    compiled_equals_eager("inductor")


@pytest.mark.parametrize("run", [recur, select])
def test_decoding_compiles_once(run):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    program = torch.compile(run, fullgraph=True, backend=counter)
    *inputs, state = diagonal_case("token", 64, torch.float32) if run is recur else scan_case(64, torch.float32)
    expected = run([*inputs, state], None, "sequential")
    with torch.no_grad():
        for t in range(64):
            now = [x[:, t : t + 1] if x.shape[1] == 64 else x for x in inputs]
            y, state = program([*now, state])
    assert_close([y, state], [expected[0][:, -1:], expected[1]], 1e-5)
    assert counter.frame_count == 1


class Exported(torch.nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, inputs, segments):
        return self.run(inputs, segments)


def exported_with_any_length(run, case, whole):
    """Export at one length, run at others: shorter than a chunk, longer than 64 chunks."""
    t = Dim("t")
    shapes = ([None if i in whole else {1: t} for i in range(len(case(70)))], {1: t})
    program = torch.export.export(Exported(run), (case(70), packed(70)), dynamic_shapes=shapes).module()
    for length in (2, 64, 65, 4300):
        inputs, segments = case(length), packed(length)
        assert_close(program(inputs, segments), run(inputs, segments, "fast"), 1e-10)


def test_exports_with_any_length():
    exported_with_any_length(recur, lambda length: diagonal_case("token", length, torch.float64), {2})


@pytest.mark.slow
def test_scan_exports_with_any_length():
    exported_with_any_length(select, lambda length: scan_case(length, torch.float64), {2, 5})


@pytest.mark.slow
def test_complex_constant_decay_exports_with_any_length():
    exported_with_any_length(recur, lambda length: diagonal_case("constant", length, torch.complex128), {0, 2})


@pytest.mark.parametrize("module", [noria.modeling.ops.diagonal_scan, noria.modeling.ops.selective_blocks])
def test_two_imports_coexist(module):
    """A copy under another name, as remote code is loaded, has its own operators; a second import harms neither."""
    name = f"{module.__package__}.copied_{module.__name__.rpartition('.')[2]}"
    spec = importlib.util.spec_from_file_location(name, Path(module.__file__))
    case = (
        diagonal_case("token", 40, torch.float32) if hasattr(module, "scan") else [*scan_case(40, torch.float32), None]
    )
    copies = []
    try:
        for _ in range(2):
            copy = importlib.util.module_from_spec(spec)
            sys.modules[name] = copy
            spec.loader.exec_module(copy)
            copies.append(copy)
    finally:
        sys.modules.pop(name, None)
    expected = module.fast(*case)
    for each in (module, copies[-1]):
        torch._dynamo.reset()
        assert_close(torch.compile(each.fast, fullgraph=True, backend="aot_eager")(*case), expected, 1e-6)
    assert copies[0]._LIBRARY != module._LIBRARY
