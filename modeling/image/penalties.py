"""What keeps a critic f smooth: penalties on its gradient, clipped weights, a penalty on spectral norms.

gradient   E (|∇f(u)| - 1)²          u on segments between real x and generated y    WGAN-GP, arXiv:1704.00028
lipschitz  E max(0, |∇f(u)| - 1)²    the same points, one-sided                      WGAN-LP, arXiv:1709.08894
r1         ½ E |∇f(x)|²              real samples alone                              R1, arXiv:1801.04406
div        E |∇f(u)|⁶                the same points as the first                    WGAN-div, arXiv:1712.01026

Where a critic answers with a map of logits, f is the map's mean, as in the critic's loss.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spectral import weight_matrix, weighted_layers

Critic = Callable[[Tensor], Tensor]
Penalty = Callable[[Critic, Tensor, Tensor, torch.Generator | None], Tensor]


def squared_slopes(critic: Critic, points: Tensor) -> Tensor:
    """|∇f|² at each of the points (b ...): (b) in single precision at least, differentiable by f's weights."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        values = critic(points).reshape(len(points), -1).mean(1)
        (slope,) = torch.autograd.grad(values.sum(), points, create_graph=True)
        return slope.flatten(1).to(torch.promote_types(slope.dtype, torch.float32)).square().sum(1)


def length(squares: Tensor) -> Tensor:
    """√s, with gradient zero rather than infinite where s is zero."""
    return torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)


def between(real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A point of each segment from real to fake (b ...), evenly drawn. Raises ValueError where the shapes differ."""
    if real.shape != fake.shape:
        given = f"{tuple(real.shape)} and {tuple(fake.shape)}"
        raise ValueError(f"there is no segment between real and generated samples of shapes {given}: make them equal.")
    device = real.device if generator is None else generator.device
    share = torch.rand(len(real), generator=generator, device=device).to(real)
    return torch.lerp(real.detach(), fake.detach().to(real), share.view(-1, *[1] * (real.dim() - 1)))


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """E (|∇f| - 1)² between real and fake (b ...): zero where f rises by 1 for each unit everywhere."""
    return (length(squared_slopes(critic, between(real, fake, generator))) - 1).square().mean()


def lipschitz_penalty(critic: Critic, real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """E max(0, |∇f| - 1)² between real and fake (b ...): zero where f has Lipschitz constant 1."""
    return F.relu(length(squared_slopes(critic, between(real, fake, generator))) - 1).square().mean()


def r1_penalty(critic: Critic, real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """½ E |∇f|² at the real samples (b ...); `fake` and `generator` are not read."""
    return squared_slopes(critic, real).mean() / 2


def div_penalty(critic: Critic, real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """E |∇f|⁶ between real and fake (b ...); with weight 2 the critic's optimum is a divergence."""
    return squared_slopes(critic, between(real, fake, generator)).pow(3).mean()


PENALTIES: dict[str, Penalty] = {
    "gradient": gradient_penalty,
    "lipschitz": lipschitz_penalty,
    "r1": r1_penalty,
    "div": div_penalty,
}
# The weights of the articles.
PENALTY_WEIGHTS = {"gradient": 10.0, "lipschitz": 10.0, "r1": 10.0, "div": 2.0}


@torch.no_grad()
def clip_weights(module: nn.Module, bound: float) -> None:
    """Puts every parameter of `module` back into [-bound, bound]. Raises ValueError unless `bound` is positive."""
    if not bound > 0:
        raise ValueError(f"the bound of clipped weights must be positive, not {bound}.")
    for parameter in module.parameters():
        parameter.clamp_(-bound, bound)


def spectral_regularization(module: nn.Module) -> Tensor:
    """The sum of |W|₂² over the linear and convolutional layers of `module`, which a small weight is to multiply.

    |W|₂ is the largest singular value of W as a matrix of one row for each output; the gradient of its square is
    2 |W|₂ u vᵀ with the singular vectors u, v. Raises ValueError where there is no such layer.
    """
    norms = []
    for weight in map(weight_matrix, weighted_layers(module)):
        wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
        with torch.no_grad():
            top = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -1]
        norms.append((top @ wide).square().sum())
    if not norms:
        raise ValueError(f"{type(module).__name__} has no linear or convolutional layer to regularize.")
    return torch.stack(norms).sum()
