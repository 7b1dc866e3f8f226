"""What a first stage and a prior over its codes are worth on pictures that they have not seen."""

import math

import torch
from torch import Tensor

from ..modeling.vqgan import NoriaVQGANModel
from ..modeling.vqgan_prior import NoriaVQGANPriorForImageGeneration
from .codebook_usage import CodebookUsage
from .image_quality import peak_signal_to_noise
from .pictures import CodedPictures, as_pixels

AT_ONCE = 64


@torch.no_grad()
def encode(vqgan: NoriaVQGANModel, pictures: Tensor) -> Tensor:
    """pictures (n c H W), uint8 -> codes (n h w), by the model in evaluation mode."""
    vqgan.eval()
    return torch.cat([vqgan.encode(as_pixels(some).to(vqgan.device)).codes.cpu() for some in pictures.split(AT_ONCE)])


@torch.no_grad()
def reconstruct(vqgan: NoriaVQGANModel, pictures: Tensor) -> Tensor:
    """pictures (n c H W), uint8 -> what their codes are decoded to, float32, not clamped."""
    codes = encode(vqgan, pictures)
    return torch.cat([vqgan.decode_codes(some.to(vqgan.device)).float().cpu() for some in codes.split(AT_ONCE)])


def measure_first_stage(vqgan: NoriaVQGANModel, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """psnr, the mean over the held-out pictures, and one_color_psnr, what painting each in its mean colour would give;
    codebook_usage and codebook_perplexity over all training pictures. Pictures are (n c H W), uint8.
    """
    pixels = as_pixels(held_out)
    flat = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    usage = CodebookUsage(vqgan.config.num_codes)
    usage.add(encode(vqgan, train))
    return {
        "psnr": peak_signal_to_noise(reconstruct(vqgan, held_out), pixels).mean().item(),
        "one_color_psnr": peak_signal_to_noise(flat, pixels).mean().item(),
        **usage.measures(),
    }


def unigram_baseline(train: Tensor, held_out: Tensor, size: int) -> float:
    """Nats per code of `held_out` for whom knows the frequencies of the `size` codes in `train` and nothing else.

    Laplace's rule: p(c) = (count(c) + 1) / (total + size). Raises ValueError where nothing is held out.
    """
    if not held_out.numel():
        raise ValueError("the held-out part has no codes, so there is nothing to measure")
    counts = train.flatten().bincount(minlength=size).double() + 1
    return math.log(counts.sum().item()) - counts.log()[held_out.flatten()].mean().item()


@torch.no_grad()
def prior_loss(prior: NoriaVQGANPriorForImageGeneration, rows: CodedPictures) -> float:
    """The prior's mean loss over all codes of the rows, in nats, each picture's category known."""
    training = prior.training
    prior.eval()
    total = 0.0
    for codes, classes in zip(rows.codes.split(AT_ONCE), rows.classes.split(AT_ONCE), strict=True):
        total += prior(codes=codes, condition=classes).loss.item() * len(codes)
    prior.train(training)
    return total / len(rows)
