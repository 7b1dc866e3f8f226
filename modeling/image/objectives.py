"""What critic and generator minimise, given logits V(x) of real and generated samples; D(x) = sigmoid(V(x)).

minimax         critic -E log D(x) - E log(1 - D(y)), generator E log(1 - D(y))      arXiv:1406.2661
non_saturating  the same critic, generator -E log D(y)                               arXiv:1406.2661
vanilla         half that critic's loss, generator -E V(y), as VQGAN's code          arXiv:2012.09841
lsgan           critic ½E(V(x) - 1)² + ½E V(y)², generator ½E(V(y) - 1)²             arXiv:1611.04076
hinge           critic E max(0, 1 - V(x)) + E max(0, 1 + V(y)), generator -E V(y)    arXiv:1705.02894
wgan            critic E V(y) - E V(x), generator -E V(y)                            arXiv:1701.07875

The table `OBJECTIVES` names these and the six divergences of f-GAN.
"""

import torch.nn.functional as F
from torch import Tensor

from .f_divergences import DIVERGENCES


class Minimax:
    """The game of the first article: the generator minimises what the critic maximises, log(1 - D(y)).

    Its gradient by a logit is -D(y), which vanishes where the critic is sure that y is generated.
    """

    # A logit above this says that the critic holds a sample to be real; None where logits have no such meaning.
    threshold: float | None = 0.0

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The critic's loss, a scalar, of logits of any shapes."""
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        """The generator's loss, a scalar, of logits of any shape."""
        return -F.softplus(fake_logits).mean()


class NonSaturating(Minimax):
    """The generator maximises log D(y) instead: the gradient by a logit is -(1 - D(y)), the fixed point the same."""

    def generator(self, fake_logits: Tensor) -> Tensor:
        return F.softplus(-fake_logits).mean()


class Vanilla(Minimax):
    """What VQGAN's code calls so: the logistic critic at half weight, and a generator that maximises the logit."""

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return super().critic(real_logits, fake_logits) / 2

    def generator(self, fake_logits: Tensor) -> Tensor:
        return -fake_logits.mean()


class LeastSquares:
    """Real samples are to be rated 1 and generated ones 0; at the critic's optimum a Pearson divergence is left."""

    threshold: float | None = 0.5

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return ((real_logits - 1).square().mean() + fake_logits.square().mean()) / 2

    def generator(self, fake_logits: Tensor) -> Tensor:
        return (fake_logits - 1).square().mean() / 2


class Hinge:
    """Logits beyond 1 and -1 are far enough. VQGAN's code takes half of the critic's loss."""

    threshold: float | None = 0.0

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        return -fake_logits.mean()


class Wasserstein:
    """A critic of Lipschitz constant 1, which clipping, a penalty or spectral norm sees to, estimates the distance."""

    threshold: float | None = None

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return fake_logits.mean() - real_logits.mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        return -fake_logits.mean()


OBJECTIVES: dict[str, type] = {
    "minimax": Minimax,
    "non_saturating": NonSaturating,
    "vanilla": Vanilla,
    "lsgan": LeastSquares,
    "hinge": Hinge,
    "wgan": Wasserstein,
    **DIVERGENCES,
}


def make_objective(name: str):
    """The objective called `name`. Raises ValueError naming the known ones otherwise."""
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}: choose from {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]()
