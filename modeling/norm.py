"""The norms that a configuration names.

layer_norm   (x - mean(x)) / sqrt(var(x) + eps) * weight + bias     Ba et al. 2016 (arXiv:1607.06450)
rms_norm     x / sqrt(mean(x^2) + eps), without weight              Zhang and Sennrich 2019 (arXiv:1910.07467)
"""

from collections.abc import Callable
from functools import partial

from torch import nn

NORMS: dict[str, Callable[..., nn.Module]] = {
    "layer_norm": nn.LayerNorm,
    "rms_norm": partial(nn.RMSNorm, elementwise_affine=False),
}


def make_norm(name: str, width: int, eps: float) -> nn.Module:
    """The norm called `name` over `width` channels. Raises ValueError naming the known ones otherwise."""
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}: choose from {sorted(NORMS)}.")
    return NORMS[name](width, eps=eps)
