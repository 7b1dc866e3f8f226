"""The kernels of the state-space mixer: sums against the systems that they stand for, and what is refused."""

import pytest
import torch
from laws import same

from noria import NoriaS4Config, NoriaS4Model
from noria.modeling.mixers.s4 import KERNELS
from noria.modeling.mixers.s4_init import hippo_parts
from noria.modeling.ops.cauchy import cauchy, nodes
from noria.modeling.ops.hippo_measures import fout, legs, legt
from noria.modeling.ops.segment_convolution import segment_convolution

MATRICES = {
    "legs": lambda size: legs(size, "paper")[0],
    "legt": lambda size: legt(size, 2.0, "paper")[0],
    "fout": lambda size: fout(size, 2.0)[0],
}
VARIANTS = [
    {"kernel": "s4", "init": "legs"},
    {"kernel": "s4", "init": "legt"},
    {"kernel": "s4", "init": "fout"},
    {"kernel": "s4d"},
    {"kernel": "s4d", "init": "inv", "discretization": "bilinear"},
    {"kernel": "s4d", "init": "real", "real_states": True},
    {"kernel": "dss"},
    {"kernel": "dss", "discretization": "exp"},
]


def make_kernel(dtype: torch.dtype = torch.float64, **fields):
    torch.manual_seed(0)
    config = NoriaS4Config(hidden_size=6, state_size=8, **fields)
    kernel = KERNELS[config.kernel](config).to(dtype)
    kernel.initialize(0.02)
    return kernel


@torch.no_grad()
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("length", [1, 2, 37, 64, 130])
def test_response_is_that_of_the_recurrence_and_includes_the_token_itself(fields, length):
    kernel = make_kernel(**fields)
    pace, state = kernel.pace(), kernel.initial_state(1, torch.float64, torch.device("cpu"))
    outputs = []
    for place in range(length):
        y, state = kernel.step(pace, torch.full((1, 6), float(place == 0), dtype=torch.float64), state)
        outputs.append(y)
    same(kernel.impulse(kernel.system(), length)[0], torch.cat(outputs).T)


@torch.no_grad()
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_float32_response_is_exact_over_long_texts(fields):
    expected = (kernel := make_kernel(**fields)).impulse(kernel.system(), 3000)
    kernel = kernel.float()
    exact = kernel.double().impulse(kernel.system(), 3000)
    found = kernel.float().impulse(kernel.system(), 3000)
    assert found.dtype == torch.float32
    same(found.double(), exact, 3e-6)
    assert expected.isfinite().all()


@pytest.mark.parametrize("init", MATRICES)
def test_normal_plus_low_rank_is_the_matrix_of_hippo(init):
    size = 10
    poles, low, _ = hippo_parts(init, size, 2)
    # Both of each pair: the spectrum of Lambda - P P^* is that of the matrix.
    poles, low = torch.cat([poles, poles.conj()]), torch.cat([low, low.conj()], dim=1)
    found = torch.linalg.eigvals(torch.diag(poles) - low.T @ low.conj())
    expected = torch.linalg.eigvals(MATRICES[init](size))
    assert (found[:, None] - expected).abs().min(dim=0).values.max() < 1e-6 * expected.abs().max()


def test_cauchy_sums_have_their_gradient():
    torch.manual_seed(0)
    v = torch.randn(2, 2, 3, dtype=torch.complex128, requires_grad=True)
    poles = (-torch.rand(2, 3).double() - 0.1 + 1j * torch.randn(2, 3).double()).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, p: torch.view_as_real(cauchy(v, p, *nodes(11, v.device))), (v, poles))


def test_segments_are_convolved_alone_with_their_gradient():
    torch.manual_seed(0)
    u = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    segments = torch.tensor([[0, 0, 0, 0, 1, 2, 2, 2, 2], [1, 1, 1, 2, 2, 2, 2, 2, 2]])
    lag = torch.arange(9)[:, None] - torch.arange(9)
    reach = (lag >= 0) & (segments[:, :, None] == segments[:, None])
    weights = kernel[:, lag.clamp(min=0)] * reach[:, None]
    same(segment_convolution(u, kernel, segments), (weights @ u[..., None])[..., 0])
    assert torch.autograd.gradcheck(lambda u, k: segment_convolution(u, k, segments), (u, kernel))


@torch.no_grad()
def test_a_bidirectional_model_reads_the_end():
    torch.manual_seed(0)
    model = NoriaS4Model(NoriaS4Config(vocab_size=9, hidden_size=6, num_hidden_layers=1, bidirectional=True)).eval()
    ids = torch.arange(8)[None]
    changed = torch.cat([ids[:, :-1], torch.tensor([[8]])], dim=1)
    assert (model(ids)[0][:, 0] - model(changed)[0][:, 0]).abs().max() > 1e-4


@torch.no_grad()
def test_a_longest_response_cuts_a_text_but_not_its_state():
    torch.manual_seed(0)
    fields = {"vocab_size": 0, "hidden_size": 6, "num_hidden_layers": 1, "kernel": "s4d"}
    whole = NoriaS4Model(NoriaS4Config(**fields)).eval()
    cut = NoriaS4Model(NoriaS4Config(**fields, max_kernel_length=4)).eval()
    cut.load_state_dict(whole.state_dict())
    x = torch.randn(1, 9, 6)
    one, other = whole(inputs_embeds=x, use_cache=True), cut(inputs_embeds=x, use_cache=True)
    same(other[0][:, :4], one[0][:, :4], 1e-6)
    assert (other[0][:, 5:] - one[0][:, 5:]).abs().max() > 1e-4
    same(other.past_key_values.layers[0].state[0], one.past_key_values.layers[0].state[0], 1e-6)


@torch.no_grad()
def test_a_kernel_normalised_over_each_text_cannot_continue_it():
    model = NoriaS4Model(
        NoriaS4Config(vocab_size=9, hidden_size=6, num_hidden_layers=1, kernel="dss", kernel_length=0)
    ).eval()
    cache = model(torch.arange(4)[None], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="set `kernel_length`"):
        model(torch.tensor([[4]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": "s6"}, "unknown kernel 's6'"),
        ({"init": "lin"}, "`init` 'lin' is not one of kernel 's4'"),
        ({"kernel": "s4d", "discretization": "euler"}, "'euler' is not one of"),
        ({"state_size": 7}, "even and positive, not 7"),
        ({"num_ssm": 5}, "not a multiple of `num_ssm`"),
        ({"init": "legt", "rank": 1}, "`rank` must be at least 2"),
        ({"dt_min": 0.2}, "`dt_min`"),
        ({"pooling": "max"}, "`pooling`"),
        ({"real_states": True}, "complex states"),
    ],
)
def test_values_that_cannot_be_are_named(fields, message):
    with pytest.raises(Exception, match=message):
        NoriaS4Config(hidden_size=24, **fields)
