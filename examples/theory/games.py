"""What a GAN's two players do where everything can be computed: on finitely many points, and between Gaussians.

With the best critic for it, a generator's gradient is that of a divergence of p, the data, and q, its own samples:

    minimax          2 JS(p, q) - 2 log 2                   arXiv:1406.2661
    non-saturating   KL(q, p) - 2 JS(p, q)                  arXiv:1701.04862
    hinge            sum |p - q|, twice the total variation
    f-GAN            D_f(p, q)                              arXiv:1606.00709
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from noria.modeling.image.objectives import make_objective

Divergence = Callable[[Tensor, Tensor], Tensor]
F_DIVERGENCES = ("kl", "reverse_kl", "pearson", "squared_hellinger", "jensen_shannon", "gan")


def kullback_leibler(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    return (kullback_leibler(p, (p + q) / 2) + kullback_leibler(q, (p + q) / 2)) / 2


def log_ratio(p: Tensor, q: Tensor) -> Tensor:
    """The logits of D* = p / (p + q)."""
    return p.log() - q.log()


def side(p: Tensor, q: Tensor) -> Tensor:
    """The best critic for the hinge."""
    return (p - q).sign()


def non_saturating(p: Tensor, q: Tensor) -> Tensor:
    return kullback_leibler(q, p) - 2 * jensen_shannon(p, q)


# Objective: how what it descends is written, the divergence, the best critic's logits.
DESCENDED: dict[str, tuple[str, Divergence, Divergence]] = {
    "minimax": ("2 JS(p, q)", lambda p, q: 2 * jensen_shannon(p, q), log_ratio),
    "non_saturating": ("KL(q, p) - 2 JS(p, q)", non_saturating, log_ratio),
    "hinge": ("sum abs(p - q)", lambda p, q: (p - q).abs().sum(), side),
}
for _name in F_DIVERGENCES:
    _objective = make_objective(_name)
    DESCENDED[_name] = (
        f"D_f, {_name}",
        _objective.divergence,
        lambda p, q, best=_objective.optimal_logit: best(p / q),
    )


def distributions(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two random distributions over the same points, (number) float64 each, none of them zero anywhere."""
    draw = torch.Generator().manual_seed(seed)
    p, q = torch.rand(2, number, generator=draw, dtype=torch.float64).add(0.02).log().neg().add(0.05)
    return p / p.sum(), q / q.sum()


def each(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """The loss of each logit by itself, (n)."""
    return torch.stack([loss(logit[None]) for logit in logits])


def generator_gradients(name: str, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """By the logits of q: the gradient of the generator's loss, the critic held at its best, and the divergence's."""
    _, divergence, critic = DESCENDED[name]
    best = critic(p, q)
    logits = q.log().requires_grad_()
    loss = (logits.softmax(0) * each(make_objective(name).generator, best)).sum()
    return torch.autograd.grad(loss, logits)[0], torch.autograd.grad(divergence(p, logits.softmax(0)), logits)[0]


def bound_on_points(name: str, p: Tensor, q: Tensor, logits: Tensor) -> float:
    """f-GAN's bound E_p T(V) - E_q f*(T(V)) of a critic that answers `logits` on the points."""
    objective = make_objective(name)
    return (p @ objective.activation(logits) - q @ objective.conjugate(logits)).item()


def logit_slopes(name: str, logits: Tensor) -> Tensor:
    """The derivative of a generator's loss by the logit of one sample, at each of the logits."""
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(each(make_objective(name).generator, logits).sum(), logits)[0]


def discriminators(steps: list[int], seed: int, shift: float = 1.0, batch: int = 512) -> list[nn.Module]:
    """One discriminator of samples of N(-shift, 1) and N(shift, 1), as it was after each of the numbers of steps."""
    torch.manual_seed(seed)
    objective = make_objective("minimax")
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    kept = []
    for step in range(max(steps) + 1):
        if step in steps:
            copy = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
            copy.load_state_dict(model.state_dict())
            kept.append(copy)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / (max(steps) + 1))
        noise = torch.randn(2, batch, 1)
        loss = objective.critic(model(noise[0] - shift), model(noise[1] + shift))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return kept


def grid(reach: float, number: int = 4001) -> tuple[Tensor, float]:
    """Points of a line and the distance between neighbours, for sums in place of integrals."""
    points = torch.linspace(-reach, reach, number, dtype=torch.float64)
    return points, 2 * reach / (number - 1)


def normal(x: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))


def two_humps(x: Tensor) -> Tensor:
    """The density that one Gaussian is to fit."""
    return (normal(x, -2.0, 0.5) + normal(x, 2.0, 0.5)) / 2


def fitted(divergence: Divergence, starts: tuple[float, ...] = (0.5, 2.0)) -> tuple[float, float]:
    """Mean and standard deviation of the Gaussian q that is least divergent, divergence(p, q), from two humps p.

    Reverse Kullback-Leibler has a saddle between the humps, so the best of several starts is kept.
    """
    x, step = grid(12.0)
    p = two_humps(x) * step

    def value(parameters: Tensor) -> Tensor:
        # Far from both a density of zero would make the logarithm infinite, times zero.
        return divergence(p + 1e-300, normal(x, parameters[0], parameters[1].exp()) * step + 1e-300)

    found = [descend(value, torch.tensor([start, 0.0], dtype=torch.float64)) for start in starts]
    mean, deviation = min(found, key=lambda parameters: value(parameters).item())
    return mean.item(), deviation.exp().item()


def descend(value: Callable[[Tensor], Tensor], parameters: Tensor) -> Tensor:
    """A local minimum of `value` near to the parameters."""
    parameters = parameters.requires_grad_()
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = value(parameters)
        loss.backward()
        return loss

    optimizer.step(closure)
    return parameters.detach()
