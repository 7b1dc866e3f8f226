"""Penalties of critics, clipped weights, and spectral norm with its product bound."""

import pytest
import torch
from torch import nn

from noria.modeling.image.patch_discriminator import PatchDiscriminator
from noria.modeling.image.penalties import PENALTIES, PENALTY_WEIGHTS, clip_weights, spectral_regularization
from noria.modeling.image.spectral import apply_spectral_norm, lipschitz_bound, slope_bound, weight_matrix


def linear(slope, width=6):
    direction = torch.randn(width, dtype=torch.float64)
    direction = slope * direction / direction.norm()
    return lambda x: x.flatten(1) @ direction


def samples(*shape):
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)


def mlp(width=16, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("shape", [(5, 6), (5, 1, 2, 3)])
@pytest.mark.parametrize(
    ("name", "slope", "value"),
    [
        ("gradient", 0.0, 1.0),
        ("gradient", 0.3, 0.49),
        ("gradient", 1.0, 0.0),
        ("gradient", 3.0, 4.0),
        ("lipschitz", 0.3, 0.0),
        ("lipschitz", 1.0, 0.0),
        ("lipschitz", 3.0, 4.0),
        ("r1", 0.0, 0.0),
        ("r1", 3.0, 4.5),
        ("div", 0.0, 0.0),
        ("div", 2.0, 64.0),
    ],
)
def test_the_penalty_of_a_linear_critic(name, slope, value, shape):
    assert PENALTIES[name](linear(slope), *samples(*shape)).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_teach_the_weights_and_not_the_samples(name):
    critic, (real, fake) = mlp().double(), samples(4, 2)
    critic[-1].weight.data *= 20
    real.requires_grad_()
    fake.requires_grad_()
    PENALTIES[name](critic, real, fake, torch.Generator().manual_seed(3)).backward()
    assert real.grad is None
    assert fake.grad is None
    assert all(layer.weight.grad.isfinite().all() for layer in critic if isinstance(layer, nn.Linear))
    assert critic[0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        again = PENALTIES[name](critic, real, fake, torch.Generator().manual_seed(3))
    assert again == PENALTIES[name](critic, real, fake, torch.Generator().manual_seed(3))
    assert PENALTY_WEIGHTS.keys() == PENALTIES.keys()


@pytest.mark.parametrize("name", PENALTIES)
def test_autocast_leaves_a_penalty_in_single_precision(name):
    critic = PatchDiscriminator(3, 4, 1, norm="none", spectral_norm=True)
    real, fake = (x.float() for x in samples(2, 3, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        penalty = PENALTIES[name](critic, real, fake)
    assert penalty.dtype == torch.float32
    penalty.backward()
    assert all(p.grad.isfinite().all() for p in critic.parameters() if p.grad is not None)


def test_a_flat_critic_is_penalised_without_a_gradient_of_infinity():
    critic = nn.Linear(3, 1)
    nn.init.zeros_(critic.weight)
    PENALTIES["gradient"](critic, torch.randn(4, 3), torch.randn(4, 3)).backward()
    assert critic.weight.grad.isfinite().all()


def test_a_map_of_logits_counts_as_its_mean():
    real, fake = (x.float() for x in samples(2, 3, 24, 24))
    discriminator = PatchDiscriminator(3, 4, 2, norm="none")

    def mean(x):
        return discriminator(x).mean((1, 2, 3))

    found = [PENALTIES["r1"](critic, real, fake) for critic in (discriminator, mean)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", sorted(PENALTIES.keys() - {"r1"}))
def test_samples_of_two_shapes_have_nothing_between_them(name):
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(3, 2\)"):
        PENALTIES[name](mlp(), torch.randn(4, 2), torch.randn(3, 2))


def test_clipping_holds_every_weight_and_refuses_no_bound():
    critic = mlp()
    clip_weights(critic, 0.01)
    assert max(p.abs().max() for p in critic.parameters()) == torch.tensor(0.01)
    with pytest.raises(ValueError, match="not 0"):
        clip_weights(critic, 0.0)


def test_spectral_regularization_is_the_sum_of_squared_norms_with_their_gradient():
    module = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 7), nn.Flatten(), nn.Unflatten(1, (7, 1, 1)))
    module.append(nn.Conv2d(7, 2, 1)).append(nn.ConvTranspose2d(2, 3, 2)).double()
    expected = sum(torch.linalg.matrix_norm(weight_matrix(module[i]), ord=2).square() for i in (0, 1, 4, 5))
    found = spectral_regularization(module)
    torch.testing.assert_close(found, expected)
    weights = [module[i].weight for i in (0, 1, 4, 5)]
    for mine, exact in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(mine, exact)
    with pytest.raises(ValueError, match="ReLU"):
        spectral_regularization(nn.ReLU())


def settle(module, steps=200):
    """The weights stand still while the power iteration goes on."""
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for _ in range(steps):
                _ = layer.weight
    return module.eval()


def steepest(critic, *shape):
    x = torch.randn(64, *shape, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(critic(x).flatten(1).mean(1).sum(), x)
    return slope.flatten(1).norm(dim=1).max().item()


def test_spectral_norm_divides_every_weight_once():
    critic = settle(apply_spectral_norm(apply_spectral_norm(mlp().double())))
    for layer in critic:
        if isinstance(layer, nn.Linear):
            assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1, abs=1e-9)
            assert len(layer.parametrizations.weight) == 1
    assert lipschitz_bound(critic) == pytest.approx(1, abs=1e-8)
    assert steepest(critic, 2) <= 1 + 1e-8


@pytest.mark.parametrize("seed", range(3))
def test_the_product_of_slopes_bounds_every_critic(seed):
    critic = mlp(seed=seed).double()
    assert 0 < steepest(critic, 2) <= lipschitz_bound(critic)
    x, y = samples(200, 2)
    assert ((critic(x) - critic(y)).abs()[:, 0] / (x - y).norm(dim=1)).max() <= lipschitz_bound(critic)


@pytest.mark.parametrize(("kernel", "stride", "size"), [(4, 2, 12), (3, 2, 9), (4, 1, 8), (3, 1, 7), (2, 2, 8)])
def test_the_bound_of_a_convolution_knows_that_patches_overlap(kernel, stride, size):
    layer = nn.Conv2d(2, 3, kernel, stride, padding=1, bias=False).double()
    whole = torch.autograd.functional.jacobian(layer, torch.zeros(1, 2, size, size, dtype=torch.float64))
    exact = torch.linalg.matrix_norm(whole.reshape(-1, 2 * size * size), ord=2).item()
    assert exact <= slope_bound(layer) + 1e-9
    assert torch.linalg.matrix_norm(weight_matrix(layer), ord=2).item() <= exact * kernel


def test_the_bound_holds_for_a_patch_discriminator_with_spectral_norm():
    critic = settle(PatchDiscriminator(3, 8, 2, norm="none", spectral_norm=True).double(), 20)
    assert steepest(critic, 3, 16, 16) <= lipschitz_bound(critic)


def test_a_norm_has_no_slope():
    with pytest.raises(ValueError, match="BatchNorm2d"):
        lipschitz_bound(PatchDiscriminator(3, 4, 1))


@pytest.mark.parametrize("method", ["clip", "gradient", "lipschitz", "spectral"])
def test_a_critics_value_by_its_slope_stays_below_the_optimal_transport(method):
    optimize = pytest.importorskip("scipy.optimize")
    draw = torch.Generator().manual_seed(1)
    real, fake = (torch.randn(40, 2, generator=draw) + shift for shift in (0.0, 1.5))
    cost = torch.cdist(real.double(), fake.double()).numpy()
    best = cost[optimize.linear_sum_assignment(cost)].mean()
    critic = apply_spectral_norm(mlp(32)) if method == "spectral" else mlp(32)
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3, betas=(0.0, 0.9))
    for _ in range(150):
        loss = critic(fake).mean() - critic(real).mean()
        if method in PENALTIES:
            loss = loss + 10 * PENALTIES[method](critic, real, fake, draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if method == "clip":
            clip_weights(critic, 0.1)
    settle(critic, 50) if method == "spectral" else critic.eval()
    value = (critic(real).mean() - critic(fake).mean()).item()
    assert 0 < value / lipschitz_bound(critic) <= best
    if method != "clip":
        assert value > 0.4 * best
