"""Objectives of critics and generators: gradients at extremes, optima on discrete distributions, divergences."""

import math

import pytest
import torch
from torch.special import entr

from noria.modeling.image.f_divergences import DIVERGENCES
from noria.modeling.image.objectives import OBJECTIVES, make_objective

SURE = 30.0


def distributions(points=50, seed=0):
    draw = torch.Generator().manual_seed(seed)
    p, q = (torch.rand(points, generator=draw, dtype=torch.float64) + 0.01 for _ in range(2))
    return p / p.sum(), q / q.sum()


def jensen_shannon(p, q):
    middle = (p + q) / 2
    return entr(middle).sum() - (entr(p).sum() + entr(q).sum()) / 2


def generator_slope(name, logit):
    logit = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(make_objective(name).generator(logit), logit)
    return slope.item()


@pytest.mark.parametrize("logit", [-SURE, -2.0, 0.0, 1.5, SURE])
def test_saturating_and_non_saturating_gradients(logit):
    d = 1 / (1 + math.exp(-logit))
    assert generator_slope("minimax", logit) == pytest.approx(-d, abs=1e-12)
    assert generator_slope("non_saturating", logit) == pytest.approx(-(1 - d), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("minimax", 0),
        ("jensen_shannon", 0),
        ("gan", 0),
        ("kl", 0),
        ("squared_hellinger", 0),
        ("non_saturating", -1),
        ("hinge", -1),
        ("wgan", -1),
        ("vanilla", -1),
        ("reverse_kl", -1),
        ("lsgan", -SURE - 1),
        ("pearson", SURE / 2 - 1),
    ],
)
def test_the_generators_gradient_where_the_critic_is_sure(name, slope):
    assert generator_slope(name, -SURE) == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("shape", [(4,), (3, 1, 2, 2)])
def test_losses_are_finite_scalars_for_logits_of_any_shape(name, shape):
    objective = make_objective(name)
    real, fake = torch.randn(shape), torch.randn(2, *shape[1:], requires_grad=True)
    for loss in (objective.critic(real, fake), objective.generator(fake)):
        assert loss.shape == ()
        (slope,) = torch.autograd.grad(loss, fake)
        assert loss.isfinite()
        assert slope.isfinite().all()


@pytest.mark.parametrize("name", ["minimax", "non_saturating", "vanilla", "lsgan", "hinge", "jensen_shannon", "gan"])
def test_no_logit_is_too_large(name):
    objective = make_objective(name)
    for logits in (torch.tensor([1e4]), torch.tensor([-1e4])):
        assert objective.critic(logits, -logits).isfinite()
        assert objective.generator(logits).isfinite()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_critic_that_is_right_loses_less(name):
    objective, threshold = make_objective(name), make_objective(name).threshold or 0.0
    above, below = torch.full((5,), threshold + 0.4), torch.full((5,), threshold - 0.4)
    assert objective.critic(above, below) < objective.critic(below, above)
    assert objective.generator(above) < objective.generator(below)


def test_the_critics_of_the_hinge_and_of_vqgans_code():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert make_objective("hinge").critic(real, fake) == (0 + 0.5) / 2 + (0 + 1) / 2
    assert make_objective("vanilla").critic(real, fake) == make_objective("minimax").critic(real, fake) / 2
    assert make_objective("wgan").critic(real, fake) == -1.5 - 1.25


def weighted_minimax(logits, p, q):
    """E_p log D + E_q log(1 - D) over points with weights."""
    return -(p * torch.nn.functional.softplus(-logits)).sum() - (q * torch.nn.functional.softplus(logits)).sum()


@pytest.mark.parametrize("seed", range(3))
def test_the_optimal_critic_leaves_the_jensen_shannon_divergence(seed):
    p, q = distributions(seed=seed)
    best = weighted_minimax((p / q).log(), p, q)  # D* = p / (p + q)
    assert abs(best - (2 * jensen_shannon(p, q) - 2 * math.log(2))) < 1e-15
    for _ in range(5):
        assert weighted_minimax((p / q).log() + 0.1 * torch.randn_like(p), p, q) < best


def bound(divergence, logits, p, q):
    return (p * divergence.activation(logits)).sum() - (q * divergence.conjugate(logits)).sum()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_the_divergence_at_the_optimal_critic_and_below_it_elsewhere(name, seed):
    (p, q), divergence = distributions(seed=seed), DIVERGENCES[name]()
    best, value = divergence.optimal_logit(p / q), divergence.divergence(p, q)
    assert abs(bound(divergence, best, p, q) - value) < 1e-12
    for _ in range(5):
        assert bound(divergence, best + 0.1 * torch.randn_like(best), p, q) < value


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_divergences_are_what_they_are_called(name):
    p, q = distributions()
    known = {
        "kl": (p * (p / q).log()).sum(),
        "reverse_kl": (q * (q / p).log()).sum(),
        "pearson": ((p - q).square() / q).sum(),
        "squared_hellinger": (p.sqrt() - q.sqrt()).square().sum(),
        "jensen_shannon": jensen_shannon(p, q),
        "gan": 2 * jensen_shannon(p, q) - 2 * math.log(2),
    }
    assert abs(DIVERGENCES[name]().divergence(p, q) - known[name]) < 1e-12


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_critics_loss_is_the_bound_of_samples_and_its_threshold_is_equality(name):
    divergence = DIVERGENCES[name]()
    real, fake = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert divergence.critic(real, fake) == -divergence.bound(real, fake)
    assert divergence.optimal_logit(torch.tensor(1.0)) == divergence.threshold
    slope = torch.autograd.functional.jacobian(divergence.conjugate, real).diagonal()
    times = torch.autograd.functional.jacobian(divergence.activation, real).diagonal()
    # f*'(T) = (f')⁻¹(T), and T = f'(u) there: the bound's slope by a logit vanishes for the ratio u.
    ratio = slope / times
    torch.testing.assert_close(divergence.optimal_logit(ratio), real)


def test_an_unknown_objective_is_named():
    with pytest.raises(ValueError, match=r"'hinged'.*minimax.*gan"):
        make_objective("hinged")
