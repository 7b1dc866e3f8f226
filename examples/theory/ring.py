"""A small GAN learns a ring of eight Gaussians: how many of the eight does it find, by what its critic is taught?

The test of Unrolled GAN (arXiv:1611.02163) and many after it. A mode counts as found when at least one sample in
hundred lies within three standard deviations of its centre.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from noria import NoriaGANConfig, NoriaGANModel
from noria.modeling.image.objectives import make_objective
from noria.modeling.image.penalties import PENALTIES, PENALTY_WEIGHTS, clip_weights

from .transport import scipy

MODES, RADIUS, SPREAD = 8, 2.0, 0.05
BATCH, SAMPLES, COMPARED = 256, 2000, 500


class Recipe(NamedTuple):
    """What critic and generator minimise, and what keeps the critic smooth."""

    label: str
    objective: str
    penalty: str | None = None
    penalty_weight: float | None = None
    clip: float | None = None
    spectral: bool = False
    critic_steps: int = 1
    momentum: bool = True


RECIPES = {
    "minimax": Recipe("minimax", "minimax"),
    "non_saturating": Recipe("non-saturating", "non_saturating"),
    "lsgan": Recipe("LSGAN", "lsgan"),
    "hinge": Recipe("hinge", "hinge"),
    "kl": Recipe("f-GAN, KL", "kl"),
    "reverse_kl": Recipe("f-GAN, reverse KL", "reverse_kl"),
    "pearson": Recipe("f-GAN, Pearson", "pearson"),
    "squared_hellinger": Recipe("f-GAN, squared Hellinger", "squared_hellinger"),
    "jensen_shannon": Recipe("f-GAN, Jensen-Shannon", "jensen_shannon"),
    "wgan": Recipe("WGAN, clipped to 0.1", "wgan", clip=0.1, critic_steps=3, momentum=False),
    "wgan_gp": Recipe("WGAN-GP", "wgan", penalty="gradient", penalty_weight=1.0, critic_steps=3),
    "wgan_lp": Recipe("WGAN-LP", "wgan", penalty="lipschitz", penalty_weight=1.0, critic_steps=3),
    "wgan_div": Recipe("WGAN-div", "wgan", penalty="div", critic_steps=3),
    "hinge_sn": Recipe("hinge, spectral norm", "hinge", spectral=True, critic_steps=3),
    "non_saturating_r1": Recipe("non-saturating, R1", "non_saturating", penalty="r1", penalty_weight=0.1),
}


class Found(NamedTuple):
    """Modes found, the share of samples near any mode, and the exact distance W from samples of the ring."""

    modes: int
    near: float
    distance: float


def centres() -> Tensor:
    angles = 2 * torch.pi * torch.arange(MODES) / MODES
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def ring(number: int, draw: torch.Generator) -> Tensor:
    """Points of the ring, (number, 2)."""
    modes = torch.randint(MODES, (number,), generator=draw)
    return centres()[modes] + SPREAD * torch.randn(number, 2, generator=draw)


def trained(recipe: Recipe, steps: int, seed: int, rate: float = 3e-3) -> NoriaGANModel:
    """A GAN whose generator took `steps` steps, at a rate that falls to zero."""
    torch.manual_seed(seed)
    widths = {"generator_widths": [64, 64], "critic_widths": [64, 64]}
    norms = {"generator_norm": "none", "critic_norm": "none", "spectral_norm": recipe.spectral}
    config = NoriaGANConfig(data_size=2, latent_size=8, **widths, **norms)
    model, objective = NoriaGANModel(config), make_objective(recipe.objective)
    draw = torch.Generator().manual_seed(seed)
    critic, generator = (make_optimizer(part, recipe, rate) for part in (model.critic, model.generator))
    for now in range(steps):
        for group in (*critic.param_groups, *generator.param_groups):
            group["lr"] = group["initial_lr"] * (1 - now / steps)
        for _ in range(recipe.critic_steps):
            real = ring(BATCH, draw)
            with torch.no_grad():
                fake = model(batch_size=BATCH).pixel_values
            loss = objective.critic(model.critic(real), model.critic(fake))
            if recipe.penalty:
                weight = recipe.penalty_weight or PENALTY_WEIGHTS[recipe.penalty]
                loss = loss + weight * PENALTIES[recipe.penalty](model.critic, real, fake, draw)
            step(critic, loss)
            if recipe.clip:
                clip_weights(model.critic, recipe.clip)
        step(generator, objective.generator(model.critic(model(batch_size=BATCH).pixel_values)))
    return model.eval()


def make_optimizer(part: nn.Module, recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    """Adam; RMSProp at a third of the rate for clipped WGAN, whose article warns of momentum."""
    if recipe.momentum:
        groups = [{"params": part.parameters(), "initial_lr": rate}]
        return torch.optim.Adam(groups, lr=rate, betas=(0.5, 0.9), fused=True)
    return torch.optim.RMSprop([{"params": part.parameters(), "initial_lr": rate / 3}], lr=rate / 3)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def judged(model: NoriaGANModel, seed: int) -> Found:
    """Modes, share of near samples and distance of SAMPLES samples; a distance of COMPARED of them."""
    samples = model.generate_images(SAMPLES, seed=seed)
    distances, nearest = torch.cdist(samples, centres()).min(1)
    near = distances < 3 * SPREAD
    counts = torch.bincount(nearest[near], minlength=MODES)
    real = ring(COMPARED, torch.Generator().manual_seed(seed + 1))
    return Found(int((counts >= SAMPLES / 100).sum()), near.float().mean().item(), assigned(samples[:COMPARED], real))


def assigned(x: Tensor, y: Tensor) -> float:
    """W of two sets of equally many points of equal weights: the cheapest plan is then an assignment."""
    cost = torch.cdist(x.double(), y.double()).nan_to_num(1e6).numpy()
    rows, columns = scipy().optimize.linear_sum_assignment(cost)
    return float(cost[rows, columns].mean())
