"""VQGAN's losses: Esser, Rombach and Ommer 2021 (arXiv:2012.09841), equations 4 to 7, and the code that came with it.

    L = nll + codebook_weight L_VQ + factor λ L_GAN         nll = mean(|x - y| + perceptual_weight LPIPS(x, y))
    λ = weight |∇ nll| / (|∇ L_GAN| + δ),  at most 10⁴      ∇ by the decoder's last weight

The article has δ = 1e-6, its code 1e-4.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ..modeling.image.objectives import Hinge, make_objective
from ..modeling.image.penalties import PENALTIES, PENALTY_WEIGHTS

PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda x, y: (x - y).abs(),
    "l2": lambda x, y: (x - y).square(),
}
CODE_DELTA = 1e-4
PAPER_DELTA = 1e-6
LARGEST_WEIGHT = 1e4


class HalvedHinge(Hinge):
    """The hinge loss of VQGAN's code, which takes the mean of its two terms."""

    def critic(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return super().critic(real_logits, fake_logits) / 2


class VQGANLosses:
    """The terms of both sides' losses as dictionaries of scalars, whose "loss" is the one to minimise.

    objective: a name of `OBJECTIVES`; "hinge" and "vanilla" are those of VQGAN's code. perceptual: a FeatureDistance
    or None. adaptive: λ as above, else λ = discriminator_weight. delta: δ. penalty: a name of `PENALTIES` for the
    discriminator, with `penalty_weight`, by default its article's. pixel_loss: "l1" or "l2". task: "segmentation"
    takes the binary cross-entropy of logits for nll. average: what makes of one process's gradient that of all.
    Raises ValueError for unknown names and weights below 0.
    """

    def __init__(
        self,
        objective: str = "hinge",
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        discriminator_weight: float = 0.8,
        codebook_weight: float = 1.0,
        adaptive: bool = True,
        delta: float = CODE_DELTA,
        penalty: str | None = None,
        penalty_weight: float | None = None,
        pixel_loss: str = "l1",
        task: str = "image",
        average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    ) -> None:
        for name, value, known in (("penalty", penalty, PENALTIES), ("pixel_loss", pixel_loss, PIXEL_LOSSES)):
            if value is not None and value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, not {value!r}.")
        weights = {"perceptual_weight": perceptual_weight, "discriminator_weight": discriminator_weight}
        for name, value in {**weights, "penalty_weight": penalty_weight or 0.0, "delta": delta}.items():
            if value < 0:
                raise ValueError(f"`{name}` must be at least 0, not {value}.")
        self.objective = HalvedHinge() if objective == "hinge" else make_objective(objective)
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.discriminator_weight, self.codebook_weight = discriminator_weight, codebook_weight
        self.adaptive, self.delta, self.average = adaptive, delta, average
        self.penalty = penalty
        self.penalty_weight = PENALTY_WEIGHTS.get(penalty, 0.0) if penalty_weight is None else penalty_weight
        self.pixel_loss, self.task = pixel_loss, task

    def reconstruction(self, pixels: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Both (b c h w) -> reconstruction_loss, the nll above, and its parts, of each image: (b)."""
        pixels, reconstruction = widened(pixels), widened(reconstruction)
        if self.task == "segmentation":
            errors = binary_cross_entropy_with_logits(reconstruction, pixels, reduction="none")
            return {"reconstruction_loss": errors.flatten(1).mean(1)}
        pixel_loss = PIXEL_LOSSES[self.pixel_loss](pixels, reconstruction).flatten(1).mean(1)
        if self.perceptual is None or not self.perceptual_weight:
            return {"reconstruction_loss": pixel_loss}
        perceptual_loss = self.perceptual(reconstruction, pixels).flatten()
        total = pixel_loss + self.perceptual_weight * perceptual_loss
        return {"reconstruction_loss": total, "pixel_loss": pixel_loss, "perceptual_loss": perceptual_loss}

    def generator(
        self,
        pixels: Tensor,
        reconstruction: Tensor,
        quantizer_loss: Tensor,
        last_layer: Tensor,
        discriminator: nn.Module | None = None,
        factor: float = 1.0,
    ) -> dict[str, Tensor]:
        """The model's side. The discriminator is not asked where `factor` is 0."""
        terms = {name: term.mean() for name, term in self.reconstruction(pixels, reconstruction).items()}
        loss = terms["reconstruction_loss"] + self.codebook_weight * quantizer_loss
        terms["quantizer_loss"] = quantizer_loss
        if discriminator is not None and factor and self.discriminator_weight:
            adversarial = self.objective.generator(widened(discriminator(reconstruction)))
            weight = self.weight(terms["reconstruction_loss"], adversarial, last_layer)
            terms |= {"adversarial_loss": adversarial, "d_weight": weight, "adversarial_factor": torch.tensor(factor)}
            loss = loss + factor * weight * adversarial
        return {"loss": loss, **terms}

    def weight(self, reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
        """λ, without a gradient of its own."""
        if not self.adaptive or not torch.is_grad_enabled():
            return torch.tensor(self.discriminator_weight, device=reconstruction_loss.device)
        losses = (reconstruction_loss, adversarial_loss)
        balance = adaptive_weight(*losses, last_layer, self.delta, self.average)
        return balance * self.discriminator_weight

    def critic(self, pixels: Tensor, reconstruction: Tensor, discriminator: nn.Module) -> dict[str, Tensor]:
        """The discriminator's side; no gradient goes on to the reconstruction."""
        pixels, reconstruction = pixels.detach(), reconstruction.detach()
        real, fake = widened(discriminator(pixels)), widened(discriminator(reconstruction))
        loss = self.objective.critic(real, fake)
        terms = {"loss": loss, "real_logits": real.mean(), "fake_logits": fake.mean()}
        if self.objective.threshold is not None:
            right = (real > self.objective.threshold).float().mean() + (fake < self.objective.threshold).float().mean()
            terms["accuracy"] = right / 2
        if self.penalty is not None:
            terms["penalty"] = PENALTIES[self.penalty](discriminator, widened(pixels), widened(reconstruction), None)
            terms["loss"] = loss + self.penalty_weight * terms["penalty"]
        return terms


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: Tensor,
    delta: float = CODE_DELTA,
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """|∇ reconstruction_loss| / (|∇ adversarial_loss| + delta) by `last_layer`, in [0, 1e4], detached.

    average: what makes of one process's gradient that of all.
    """
    norms = []
    for loss in (reconstruction_loss, adversarial_loss):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        norms.append(average(widened(gradient)).norm())
    return (norms[0] / (norms[1] + delta)).clamp(0.0, LARGEST_WEIGHT).detach()


def widened(x: Tensor) -> Tensor:
    """x in single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
