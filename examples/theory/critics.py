"""Critics of WGAN on two sets of points: what each way of keeping them smooth makes of Kantorovich and Rubinstein.

The best f of Lipschitz constant 1 has E f(x) - E f(y) = W, the cost of the cheapest plan. A network's constant is not
1 by itself: clipped weights (arXiv:1701.07875), a penalty on the gradient (arXiv:1704.00028, one-sided 1709.08894) or
spectral norm (arXiv:1802.05957) see to it, each in its own measure. Whatever the network, value / slope <= W where the
slope is the greatest |f(x) - f(y)| / |x - y| among the points: f / slope is feasible for the linear program.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from noria.modeling.image.objectives import make_objective
from noria.modeling.image.penalties import PENALTIES, PENALTY_WEIGHTS, clip_weights
from noria.modeling.image.spectral import apply_spectral_norm, weight_matrix, weighted_layers


class Method(NamedTuple):
    """What is done to a critic's weights, and how it is trained."""

    label: str
    penalty: str | None = None
    clip: float | None = None
    spectral: bool = False
    sorts: bool = False
    learning_rate: float = 2e-3
    objective: str = "wgan"


METHODS = {
    "clip": Method("weights clipped to 0.01", clip=0.01, learning_rate=5e-5),
    "clip-wide": Method("weights clipped to 0.1", clip=0.1, learning_rate=5e-4),
    "gradient": Method("gradient penalty", penalty="gradient"),
    "lipschitz": Method("one-sided penalty", penalty="lipschitz"),
    "spectral": Method("spectral norm, ReLU", spectral=True),
    "sorted": Method("spectral norm, sorted pairs", spectral=True, sorts=True),
}
DISCRIMINATOR = Method("discriminator", objective="minimax", learning_rate=1e-2)
# Power iterations after training, so that the norms that were divided by are the largest singular values.
SETTLING = 300


class Estimate(NamedTuple):
    """E f(x) - E f(y), the greatest slope among the points, and the product of the layers' spectral norms."""

    value: float
    slope: float
    bound: float

    @property
    def certified(self) -> float:
        """A lower bound of W whatever the network is."""
        return self.value / self.slope


class SortPairs(nn.Module):
    """Each two neighbouring channels in order: an activation that, unlike ReLU, loses no slope (arXiv:1811.05381)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, 2)).sort(dim=-1).values.flatten(-2)


def network(method: Method, width: int = 64, data: int = 2) -> nn.Sequential:
    """Two hidden layers and a value for each point."""
    sizes = [data, width, width, 1]
    layers: list[nn.Module] = []
    for number in range(3):
        layers.append(nn.Linear(sizes[number], sizes[number + 1]))
        layers += [SortPairs() if method.sorts else nn.ReLU()] if number < 2 else []
    model = nn.Sequential(*layers)
    return apply_spectral_norm(model) if method.spectral else model


def trained(method: Method, real: Tensor, fake: Tensor, steps: int, seed: int = 0) -> nn.Sequential:
    """A critic after `steps` steps on all of both sets, (n, 2) each, its learning rate falling to zero at the end."""
    torch.manual_seed(seed)
    model, objective = network(method, data=real.shape[1]), make_objective(method.objective)
    if method.clip:
        optimizer: torch.optim.Optimizer = torch.optim.RMSprop(model.parameters(), lr=method.learning_rate)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=method.learning_rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - 2 * step / steps))
    for _ in range(steps):
        loss = objective.critic(model(real), model(fake))
        if method.penalty:
            # Any real point may be on the other side of a segment, not only the one of the same number.
            other = real[torch.randperm(len(real))]
            loss = loss + PENALTY_WEIGHTS[method.penalty] * PENALTIES[method.penalty](model, other, fake, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if method.clip:
            clip_weights(model, method.clip)
    with torch.no_grad():
        for _ in range(SETTLING if method.spectral else 0):
            model(real[:1])
    return model.eval()


@torch.no_grad()
def divergence_found(model: nn.Module, real: Tensor, fake: Tensor) -> float:
    """The Jensen-Shannon divergence that a discriminator has found: its loss is 2 log 2 - 2 JS at its best."""
    return math.log(2) - make_objective("minimax").critic(model(real), model(fake)).item() / 2


@torch.no_grad()
def estimate(model: nn.Module, real: Tensor, fake: Tensor) -> Estimate:
    """What the critic says of the two sets, and how steep it is."""
    points = torch.cat([real, fake])
    values = model(points).squeeze(1)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    slopes = (values[:, None] - values).abs() / distances.clamp_min(1e-6)
    bound = 1.0
    for layer in weighted_layers(model):
        bound *= torch.linalg.matrix_norm(weight_matrix(layer), ord=2).item()
    value = values[: len(real)].mean() - values[len(real) :].mean()
    return Estimate(value.item(), slopes.max().item(), bound)


def ring_and_cloud(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points of a ring of eight Gaussians with radius 2, and of one Gaussian at its centre, (number, 2) each."""
    draw = torch.Generator().manual_seed(seed)
    angles = 2 * torch.pi * (torch.arange(number) % 8) / 8
    centres = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    real = centres + 0.02 * torch.randn(number, 2, generator=draw)
    return real, 0.5 * torch.randn(number, 2, generator=draw)


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Distances in double precision, (n, m)."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
