"""Pixels that a model made, as pictures and as maps of labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.utils import is_vision_available

if is_vision_available():
    from PIL import Image

OUTPUTS = ("pil", "np", "pt")


def to_pictures(pixels: Tensor, output_type: str, low: int) -> Any:
    """pixels (b c h w) from `low` to 1 -> PIL images, or float32 from 0 to 1: "np" (b h w c), "pt" (b c h w)."""
    if output_type not in OUTPUTS:
        raise ValueError(f"`output_type` must be one of {', '.join(OUTPUTS)}, not {output_type!r}.")
    if pixels.ndim != 4:
        raise ValueError(f"pixels must be of shape (b c h w), not {tuple(pixels.shape)}.")
    pixels = pixels.detach().float()
    if not pixels.isfinite().all():
        raise ValueError("pixels must be finite: some are NaN or infinite.")
    pixels = ((pixels - low) / (1 - low)).clamp(0, 1)
    if output_type == "pt":
        return pixels
    if output_type == "np":
        return pixels.permute(0, 2, 3, 1).cpu().numpy()
    if pixels.shape[1] not in (1, 3, 4):
        raise ValueError(f"a picture has 1, 3 or 4 channels, not {pixels.shape[1]}: these may be logits of labels.")
    array = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one[..., 0] if one.shape[2] == 1 else one) for one in array]


def to_labels(logits: Tensor, shifted: bool) -> list[Tensor]:
    """logits (b labels h w) -> for each the greatest's number (h w), int64; `shifted` undoes the shift of labels."""
    if logits.ndim != 4:
        raise ValueError(f"logits must be of shape (b labels h w), not {tuple(logits.shape)}.")
    labels = logits.argmax(1)
    return list((labels - 1) % 256 if shifted else labels)
