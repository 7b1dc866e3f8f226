"""f-GAN: Nowozin et al. 2016, Training Generative Neural Samplers using Variational Divergence Minimization
(arXiv:1606.00709).

    D_f(p, q) = E_q f(p/q) = max_V E_p T(V(x)) - E_q f*(T(V(y)))        f* the convex conjugate of f, f(1) = 0

The critic gives V, any real number; T, the article's output activation, takes it into the domain of f*. The maximum is
where T(V) = f'(p/q). f*(T(V)) is written out as one function, so that no exponential is taken only to be undone.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor


class FDivergence(ABC):
    """One divergence as an objective: the critic maximises the bound, the generator minimises it.

    The generator's loss is the article's, -E f*(T(V(y))), whose gradient may vanish where the critic is sure.
    """

    # The logit that says p = q.
    threshold: float | None = 0.0

    @abstractmethod
    def f(self, ratio: Tensor) -> Tensor:
        """The convex function of p/q that names the divergence."""

    @abstractmethod
    def activation(self, logits: Tensor) -> Tensor:
        """T(V)."""

    @abstractmethod
    def conjugate(self, logits: Tensor) -> Tensor:
        """f*(T(V))."""

    @abstractmethod
    def optimal_logit(self, ratio: Tensor) -> Tensor:
        """The logit V with T(V) = f'(p/q): what the best critic answers."""

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """D_f of two distributions over the same points, q positive at each."""
        return (q * self.f(p / q)).sum()

    def bound(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E T(V(x)) - E f*(T(V(y))), at most the divergence: the estimate of it that a critic makes."""
        return self.activation(real_logits).mean() - self.conjugate(fake_logits).mean()

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The critic's loss, a scalar, of logits of any shapes."""
        return -self.bound(real_logits, fake_logits)

    def generator(self, fake_logits: Tensor) -> Tensor:
        """The generator's loss, a scalar, of logits of any shape."""
        return -self.conjugate(fake_logits).mean()


class KullbackLeibler(FDivergence):
    """f(u) = u log u, f*(t) = exp(t - 1), T = V."""

    threshold = 1.0

    def f(self, ratio: Tensor) -> Tensor:
        return torch.xlogy(ratio, ratio)

    def activation(self, logits: Tensor) -> Tensor:
        return logits

    def conjugate(self, logits: Tensor) -> Tensor:
        return (logits - 1).exp()

    def optimal_logit(self, ratio: Tensor) -> Tensor:
        return 1 + ratio.log()


class ReverseKullbackLeibler(FDivergence):
    """f(u) = -log u, f*(t) = -1 - log(-t), T = -exp(-V)."""

    def f(self, ratio: Tensor) -> Tensor:
        return -ratio.log()

    def activation(self, logits: Tensor) -> Tensor:
        return -(-logits).exp()

    def conjugate(self, logits: Tensor) -> Tensor:
        return logits - 1

    def optimal_logit(self, ratio: Tensor) -> Tensor:
        return ratio.log()


class Pearson(FDivergence):
    """f(u) = (u - 1)², f*(t) = t²/4 + t, T = V."""

    def f(self, ratio: Tensor) -> Tensor:
        return (ratio - 1).square()

    def activation(self, logits: Tensor) -> Tensor:
        return logits

    def conjugate(self, logits: Tensor) -> Tensor:
        return logits.square() / 4 + logits

    def optimal_logit(self, ratio: Tensor) -> Tensor:
        return 2 * (ratio - 1)


class SquaredHellinger(FDivergence):
    """f(u) = (√u - 1)², f*(t) = t/(1 - t), T = 1 - exp(-V)."""

    def f(self, ratio: Tensor) -> Tensor:
        return (ratio.sqrt() - 1).square()

    def activation(self, logits: Tensor) -> Tensor:
        return -torch.expm1(-logits)

    def conjugate(self, logits: Tensor) -> Tensor:
        return torch.expm1(logits)

    def optimal_logit(self, ratio: Tensor) -> Tensor:
        return ratio.log() / 2


class JensenShannon(FDivergence):
    """f(u) = ½(u log u - (u + 1) log((u + 1)/2)), f*(t) = -½ log(2 - exp(2t)), T = ½(log 2 - log(1 + exp(-V))).

    The article defines the divergence with the factor ½ and lists f without it; here f has it, and D_f <= log 2.
    """

    def f(self, ratio: Tensor) -> Tensor:
        return (torch.xlogy(ratio, ratio) - torch.xlogy(ratio + 1, (ratio + 1) / 2)) / 2

    def activation(self, logits: Tensor) -> Tensor:
        return (math.log(2) - F.softplus(-logits)) / 2

    def conjugate(self, logits: Tensor) -> Tensor:
        return (F.softplus(logits) - math.log(2)) / 2

    def optimal_logit(self, ratio: Tensor) -> Tensor:
        return ratio.log()


class OriginalGAN(FDivergence):
    """f(u) = u log u - (u + 1) log(u + 1), f*(t) = -log(1 - exp(t)), T = -log(1 + exp(-V)): 2 JS - 2 log 2."""

    def f(self, ratio: Tensor) -> Tensor:
        return torch.xlogy(ratio, ratio) - torch.xlogy(ratio + 1, ratio + 1)

    def activation(self, logits: Tensor) -> Tensor:
        return -F.softplus(-logits)

    def conjugate(self, logits: Tensor) -> Tensor:
        return F.softplus(logits)

    def optimal_logit(self, ratio: Tensor) -> Tensor:
        return ratio.log()


DIVERGENCES: dict[str, type[FDivergence]] = {
    "kl": KullbackLeibler,
    "reverse_kl": ReverseKullbackLeibler,
    "pearson": Pearson,
    "squared_hellinger": SquaredHellinger,
    "jensen_shannon": JensenShannon,
    "gan": OriginalGAN,
}
