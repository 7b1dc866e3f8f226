"""Spectral norm: Miyato et al. 2018, Spectral Normalization for Generative Adversarial Networks (arXiv:1802.05957).

W_SN = W / σ(W), σ the largest singular value of W as a matrix of one row for each output, followed by power iteration.
A chain of layers rises by at most the product of their own greatest slopes, which `lipschitz_bound` multiplies.
"""

from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Weighted = nn.Linear | Convolution | Transposed
FIRST_ITERATIONS = 15
# An embedding of labels is among them, since it does not see the sample.
AT_MOST_ONE = (nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Dropout, nn.Embedding)


def weighted_layers(module: nn.Module) -> Iterator[Weighted]:
    """The linear and convolutional layers of `module`."""
    return (layer for layer in module.modules() if isinstance(layer, Weighted))


def weight_matrix(layer: Weighted) -> Tensor:
    """The weight of such a layer with one row for each output; a transposed convolution stores it the other way."""
    return (layer.weight.transpose(0, 1) if isinstance(layer, Transposed) else layer.weight).flatten(1)


def apply_spectral_norm(module: nn.Module) -> nn.Module:
    """Divides each linear and convolutional weight of `module` by its spectral norm, in place, and returns `module`.

    A weight is then found under `parametrizations.weight.original`. Each training step takes one step of the power
    iteration; in evaluation it stands still.
    """
    for layer in list(weighted_layers(module)):
        if not is_parametrized(layer, "weight"):
            spectral_norm(layer)
    return module


def own_weight(layer: nn.Module) -> nn.Parameter:
    """The parameter that a weight is made of: the weight itself, or what spectral norm divides."""
    return layer.get_parameter("parametrizations.weight.original" if is_parametrized(layer, "weight") else "weight")


@torch.no_grad()
def restart_power_iteration(layer: nn.Module) -> None:
    """Finds the singular vectors of a weight that spectral norm divides, unless they were read from a file."""
    if not is_parametrized(layer, "weight"):
        return
    for norm in layer.get_submodule("parametrizations.weight").children():
        vectors = norm.get_buffer("_u"), norm.get_buffer("_v")
        if any(getattr(vector, "_is_hf_initialized", False) for vector in vectors):
            continue
        for vector in vectors:
            nn.init.normal_(vector)
            vector.div_(vector.norm())
        training = norm.training
        norm.train()
        for _ in range(FIRST_ITERATIONS):
            norm(own_weight(layer))
        norm.train(training)


def slope_bound(layer: nn.Module) -> float:
    """The most by which one layer stretches a difference. Raises ValueError for a layer that has no such bound.

    Patches of a convolution overlap: each value is in at most ⌈kernel / stride⌉ of them along each side, which the
    matrix's norm does not know of and the bound takes into account.
    """
    if isinstance(layer, nn.LeakyReLU):
        return max(1.0, abs(layer.negative_slope))
    if isinstance(layer, AT_MOST_ONE):
        return 1.0
    if not isinstance(layer, nn.Linear | Convolution):
        raise ValueError(f"no bound is known of how steep a {type(layer).__name__} is.")
    overlap = 1
    if isinstance(layer, Convolution):
        for kernel, stride in zip(layer.kernel_size, layer.stride, strict=True):
            overlap *= ceil(kernel / stride)
    return torch.linalg.matrix_norm(weight_matrix(layer).detach(), ord=2).item() * overlap**0.5


def lipschitz_bound(module: nn.Module) -> float:
    """The product of the slopes of the layers of `module`, a chain: at least its Lipschitz constant in the 2-norm.

    Raises ValueError where a layer, such as a norm, has no bound.
    """
    bound = 1.0
    inside = {part for layer in weighted_layers(module) for part in layer.modules() if part is not layer}
    for layer in module.modules():
        if not list(layer.children()) or layer in set(weighted_layers(module)):
            bound *= 1.0 if layer in inside else slope_bound(layer)
    return bound
