"""What an image model may be given: images that fit it, and codes that it has."""

import torch
from torch import Tensor

from ..ops.dispatch import is_tracing_graph


def check_pixels(pixels: Tensor, channels: int, factor: int) -> None:
    """Raises ValueError unless `pixels` is (b c h w), floating and finite, with sides that `factor` divides."""
    if not pixels.is_floating_point():
        raise ValueError(f"images must be floating-point numbers from -1 to 1, not {pixels.dtype}.")
    if pixels.ndim != 4:
        raise ValueError(f"images must be of shape (b {channels} h w), not {tuple(pixels.shape)}.")
    if pixels.shape[1] != channels:
        raise ValueError(f"images must have {channels} channels for this model, not {pixels.shape[1]}.")
    sides = pixels.shape[2:]
    if min(sides) < 1 or any(side % factor for side in sides):
        fitting = " x ".join(str(max(side // factor, 1) * factor) for side in sides)
        raise ValueError(
            f"the height {sides[0]} and width {sides[1]} of images must be multiples of {factor}, by which this model "
            f"reduces them: crop or resize to {fitting}."
        )
    if readable(pixels) and not pixels.isfinite().all():
        raise ValueError("images must be finite: some pixels are NaN or infinite.")


def check_codes(codes: Tensor, count: int) -> None:
    """Raises ValueError unless `codes` is (b h w), of an integer dtype, and from 0 to `count` - 1."""
    if codes.ndim != 3:
        raise ValueError(f"codes must be of shape (b h w), not {tuple(codes.shape)}.")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"codes must be integers, not {codes.dtype}.")
    if readable(codes) and codes.numel():
        least, greatest = codes.min().item(), codes.max().item()
        if least < 0 or greatest >= count:
            wrong = least if least < 0 else greatest
            raise ValueError(f"codes must lie in 0..{count - 1}, not be {wrong}.")


def check_latents(latents: Tensor, width: int) -> None:
    """Raises ValueError unless `latents` is (b d h w) with d = `width`."""
    if latents.ndim != 4 or latents.shape[1] != width:
        raise ValueError(f"quantized latents must be of shape (b {width} h w), not {tuple(latents.shape)}.")


def readable(x: Tensor) -> bool:
    """Whether the values of `x` may be looked at: not where a graph is traced, nor where there are none."""
    return not (x.is_meta or torch.compiler.is_compiling() or is_tracing_graph())
