"""S5 is its dense system; a rational transfer function is its companion recurrence, whatever its poles."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from laws import same
from torch import nn
from torch.nn import functional as F

from noria import NoriaS4Config, NoriaS4Model
from noria.modeling.mixers.rtf import RationalKernel, companion
from noria.modeling.mixers.s5 import S5Kernel
from noria.modeling.ops.dispatch import forced_form
from noria.modeling.ops.invariant_recurrence import invariant_recurrence
from noria.modeling.ops.rational_response import rational_response
from noria.modeling.state import Context

WIDTH = 6


def kernel(kind: str, dtype: torch.dtype = torch.float64, **fields):
    torch.manual_seed(0)
    classes = {"s5": S5Kernel, "rtf": RationalKernel}
    built = classes[kind](NoriaS4Config(vocab_size=0, hidden_size=WIDTH, num_hidden_layers=1, kernel=kind, **fields))
    for module in built.modules():
        if hasattr(module, "initialize"):
            module.initialize(0.02)
    return built.to(dtype)


def whole(x: torch.Tensor, **fields) -> Context:
    return Context(torch.arange(x.shape[1])[None], keep_state=True, **fields)


def signal(length: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, length, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("form", ["sequential", "chunkwise", "fast"])
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["legs", "lin"])
def test_s5_is_the_dense_system(init, method, form):
    """Each state with its own step, made discrete by itself, B and C dense; both halves of each conjugate pair."""
    s5, u = kernel("s5", state_size=8, init=init, discretization=method), signal(11)
    n = s5.size
    poles = torch.complex(-s5.A_real.exp(), -s5.A_imag)
    B = torch.complex(s5.in_proj.weight[:n], s5.in_proj.weight[n:])
    C = torch.complex(s5.out_proj.weight[:, :n], -s5.out_proj.weight[:, n:])
    dt = s5.dt.exp()
    rule = {"zoh": (dt * poles).exp(), "bilinear": (2 + dt * poles) / (2 - dt * poles)}[method]
    into = {"zoh": (rule - 1) / poles, "bilinear": 2 * dt / (2 - dt * poles)}[method]
    A, B = rule.diag(), into[:, None] * B
    A, B, C = torch.block_diag(A, A.conj()), torch.cat((B, B.conj())), torch.cat((C, C.conj()), 1)
    s, outputs = torch.zeros(2, 2 * n, dtype=A.dtype), []
    for token in u.unbind(1):
        s = s @ A.mT + token.to(A.dtype) @ B.mT
        outputs.append(s @ C.mT)
    with forced_form(form):
        y, (state,) = s5(u, whole(u))
    same(y, torch.stack(outputs, 1).real)
    assert torch.stack(outputs).imag.abs().max() < 1e-12
    same(torch.view_as_complex(state).abs(), s[:, :n].abs())


def test_s5_begins_from_the_normal_part_of_legs():
    s5 = kernel("s5", state_size=16)
    n = torch.arange(16, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    normal = -torch.tril(root[:, None] * root, -1) - torch.diag(n + 1) + 0.5 * root[:, None] * root
    turn = torch.linalg.eigvals(normal).imag
    same(s5.A_imag.abs().detach().sort().values, turn[turn > 0].sort().values, 1e-6)
    same(s5.A_real.exp().detach(), torch.full((8,), 0.5, dtype=torch.float64), 1e-6)


def test_s5_in_both_directions():
    s5, u = kernel("s5", state_size=8, bidirectional=True), signal(9)
    forward, _ = s5(u, whole(u))
    both, _ = s5(u, whole(u, causal=False))
    s5.out_proj, s5.back_proj = s5.back_proj, s5.out_proj
    back, _ = s5(u.flip(1), whole(u))
    same(both, forward + back.flip(1))


@pytest.mark.parametrize("kind", ["s5", "rtf"])
def test_both_directions_with_padding_and_packing(kind):
    built = kernel(kind, state_size=4, bidirectional=True)
    if kind == "rtf":
        nn.init.uniform_(built.a, -0.2, 0.2)
    parts = [signal(length, 1) for length in (3, 5)]
    alone = [built(part, whole(part, causal=False))[0] for part in parts]
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1]]).bool()
    segments = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]])
    u = torch.full((1, 11, WIDTH), 9.0, dtype=torch.float64)
    u[mask] = torch.cat(parts, 1)[0]
    y, _ = built(u, whole(u, mask=mask, segments=segments, causal=False))
    same(y[mask], torch.cat(alone, 1)[0])


def taps(a: torch.Tensor, b: torch.Tensor, length: int) -> torch.Tensor:
    """K (h length) of a and b (h d) by the companion matrix."""
    A, state, found = companion(a), F.one_hot(torch.tensor(0), a.shape[-1]).to(a.dtype).expand_as(a), []
    for _ in range(length):
        found.append((b * state).sum(-1))
        state = torch.einsum("hij,hj->hi", A, state)
    return torch.stack(found, -1)


def poles(radius: float, size: int = 5) -> torch.Tensor:
    """a (WIDTH size) of systems whose poles have this modulus."""
    roots = torch.polar(torch.full((WIDTH, size // 2), radius).double(), torch.rand(WIDTH, size // 2).double() * 3)
    polynomial = torch.ones(WIDTH, 1, dtype=torch.float64)
    for root in roots.unbind(1):
        factor = torch.stack((torch.ones_like(root.real), -2 * root.real, root.abs().square()), 1)
        polynomial = torch.stack(
            [
                torch.nn.functional.conv1d(one[None, None], two.flip(0)[None, None], padding=2)[0, 0]
                for one, two in zip(polynomial, factor, strict=True)
            ]
        )
    return F.pad(polynomial[:, 1:], (0, size % 2))


@pytest.mark.parametrize("length", [1, 2, 3, 8, 200])
@pytest.mark.parametrize("radius", [0.0, 0.5, 0.99, 1.0, 1.02])
def test_the_transform_gives_the_taps_of_the_recurrence(radius, length):
    """Slow and unstable systems among them, where the transform on the unit circle wraps around."""
    torch.manual_seed(0)
    a, b = poles(radius), torch.randn(WIDTH, 5, dtype=torch.float64)
    expected = taps(a, b, length)
    same(rational_response(b, a, length, torch.float64), expected, 1e-11)
    if length == 200 and radius > 0.9:
        wrapped = torch.fft.irfft(
            torch.fft.rfft(b, 200) / torch.fft.rfft(torch.cat((torch.ones_like(a[:, :1]), a), 1), 200), 200
        )
        assert (wrapped - expected).abs().max() > 0.1 * expected.abs().max()


def test_without_feedback_it_is_a_short_convolution():
    rtf, u = kernel("rtf", state_size=4), signal(9)
    y, (state,) = rtf(u, whole(u))
    expected = F.conv1d(F.pad(u.mT, (3, 0)), rtf.b[0][:, None].flip(-1), groups=WIDTH).mT
    same(y, expected)
    same(state, u[:, -4:].flip(1).mT)


@pytest.mark.parametrize("radius", [0.6, 0.99, 1.01])
def test_every_way_is_the_companion_recurrence(radius):
    rtf, u = kernel("rtf", state_size=5), signal(40)
    rtf.a.data.copy_(poles(radius))
    parameters = list(rtf.parameters())
    with forced_form("sequential"):
        expected, (final,) = rtf(u, whole(u))
    found, (state,) = rtf(u, whole(u))
    same(found, expected)
    same(state, final)
    for one, other in zip(
        *(torch.autograd.grad(y.square().sum(), parameters) for y in (found, expected)), strict=True
    ):
        same(one, other, 1e-9)
    first, state = rtf(u[:, :13], whole(u[:, :13]))
    second, state = rtf(u[:, 13:15], whole(u[:, 13:15]), state)
    third, state = rtf(u[:, 15:], whole(u[:, 15:]), state)
    same(torch.cat((first, second, third), 1), expected)
    same(state[0], final)


def test_numerators_stored_for_a_length():
    """Over that length the plain transform of what is stored gives the taps, as the authors train it."""
    rtf = kernel("rtf", state_size=5, kernel_length=32)
    rtf.a.data.copy_(poles(0.97))
    below = torch.cat((torch.ones_like(rtf.a[:, :1]), rtf.a), 1)
    expected = torch.fft.irfft(torch.fft.rfft(rtf.b[0], 32) / torch.fft.rfft(below, 32), 32)
    system = rtf.system()
    same(rtf.impulse(system, 32)[0], expected)
    same(taps(system.a, system.b[0], 32), expected)


def test_a_small_sum_is_stable():
    torch.manual_seed(0)
    a = torch.randn(200, 7, dtype=torch.float64)
    a = 0.999 * a / a.abs().sum(1, keepdim=True)
    assert torch.linalg.eigvals(companion(a)).abs().max() < 1


def test_a_decay_may_vanish():
    """One that underflows in complex64, and one that is 0, forget all at once."""
    decay = torch.tensor([1e-60 + 0j, 0j, 0.5j], dtype=torch.complex128)
    inputs = torch.randn(1, 5, 3, dtype=torch.complex64)
    h, _ = invariant_recurrence(decay, inputs)
    torch.testing.assert_close(h[..., :2], inputs[..., :2])
    assert h.isfinite().all()


def test_sizes_follow_the_width():
    assert NoriaS4Config(kernel="s5", hidden_size=7).state_size == 8
    assert NoriaS4Config(kernel="rtf").state_size == NoriaS4Config().state_size == 64
    model = NoriaS4Model(NoriaS4Config(vocab_size=5, hidden_size=7, num_hidden_layers=1, kernel="s5"))
    assert model(torch.ones(1, 3, dtype=torch.int64)).last_hidden_state.shape == (1, 3, 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": "s5", "state_size": 7}, "`state_size` must be even and positive, not 7"),
        ({"kernel": "s5", "init": "fout"}, "`init` 'fout' is not one of kernel 's5'"),
        ({"kernel": "s5", "discretization": "exp"}, "`discretization` 'exp' is not one of kernel 's5'"),
        ({"kernel": "s5", "real_states": True}, "kernel 's5' has complex states"),
        ({"kernel": "rtf", "state_size": 0}, "`state_size` must be positive, not 0"),
    ],
)
def test_wrong_values_are_named(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        NoriaS4Config(**fields)
