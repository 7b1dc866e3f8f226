"""Distances between images as features see them: Zhang et al. 2018, LPIPS (arXiv:1801.03924).

    d(x, y) = sum_l mean_{h, w} w_l · (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)²

f_l are the activations of VGG16 behind relu1_2, 2_2, 3_3, 4_3 and 5_3, and w_l >= 0 weights of their channels.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..conversion.torch_file import read_torch

NAMED = ("none", "random_features")
# The positions of VGG16's convolutions among its features, slice by slice; between slices the sides are halved.
SLICES = (((0, 2), (64, 64)), ((5, 7), (128,) * 2), ((10, 12, 14), (256,) * 3), ((17, 19, 21), (512,) * 3))
SLICES = (*SLICES, ((24, 26, 28), (512,) * 3))
EPSILON = 1e-10
LINS = (("lpips", "weights", "v0.1", "vgg.pth"), ("torchmetrics", "functional", "image", "lpips_models", "vgg.pth"))


class FeatureDistance(nn.Module):
    """Frozen features and what they make of two images: x, y (b c h w) in [-1, 1] -> (b 1 1 1), 0 where x is y.

    Gradients go to `x` alone. A sub-class defines `features(x)`, a list of maps, and `compare(differences)`.
    """

    num_channels: tuple[int, ...] = (3,)

    def freeze(self) -> None:
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FeatureDistance":
        """Features stay in evaluation, whatever the module does that they are a part of."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] not in self.num_channels:
            wanted = " or ".join(map(str, self.num_channels))
            raise ValueError(
                f"both images must be (b c h w) with {wanted} channels, not {tuple(x.shape)} and {tuple(y.shape)}."
            )
        with torch.no_grad():
            of_y = self.features(y)
        pairs = zip(self.features(x), of_y, strict=True)
        return self.compare([(unit(a) - unit(b)).square() for a, b in pairs])

    def features(self, x: Tensor) -> list[Tensor]:
        raise TypeError(f"{type(self).__name__} does not say what its features are.")

    def compare(self, differences: list[Tensor]) -> Tensor:
        """The channels' squared differences, layer by layer (b c h w) -> (b 1 1 1)."""
        raise TypeError(f"{type(self).__name__} does not say how it weighs its features.")


class LPIPS(FeatureDistance):
    """LPIPS on VGG16, with the weights of `state`: see `read_vgg`. One channel is seen as three equal ones."""

    num_channels = (1, 3)

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.slices, self.lins = nn.ModuleList(), nn.ParameterList()
        width = 3
        for index, (positions, widths) in enumerate(SLICES):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
            for position, wider in zip(positions, widths, strict=True):
                layers += [convolution(state, position, width, wider), nn.ReLU()]
                width = wider
            self.slices.append(nn.Sequential(*layers))
            self.lins.append(nn.Parameter(checked(state, f"lin{index}", (1, width, 1, 1)).float()))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.freeze()

    def features(self, x: Tensor) -> list[Tensor]:
        x = (x - self.shift) / self.scale
        maps = []
        for part in self.slices:
            maps.append(x := part(x))
        return maps

    def compare(self, differences: list[Tensor]) -> Tensor:
        layers = zip(differences, self.lins, strict=True)
        return sum((d * lin).sum(1, keepdim=True).mean((2, 3), keepdim=True) for d, lin in layers)


class RandomFeatures(FeatureDistance):
    """Three layers of random convolutions, the same for the same seed, in place of a trained network.

    No substitute for LPIPS: such features see edges and textures, not objects. Its values are not comparable either.
    """

    def __init__(self, num_channels: int = 3, seed: int = 0, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.num_channels = (num_channels,)
        draws = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        for width in widths:
            layer = nn.Conv2d(num_channels, width, 3, padding=1)
            nn.init.kaiming_normal_(layer.weight, generator=draws)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)
            num_channels = width
        self.freeze()

    def features(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.layers):
            if index and min(x.shape[2:]) > 1:
                x = nn.functional.avg_pool2d(x, 2)
            maps.append(x := layer(x).relu())
        return maps

    def compare(self, differences: list[Tensor]) -> Tensor:
        return sum(d.sum(1, keepdim=True).mean((2, 3), keepdim=True) for d in differences) / len(differences)


def make_perceptual(kind: str | Path, num_channels: int = 3) -> FeatureDistance | None:
    """A path of VGG16's weights -> LPIPS; "random_features" -> RandomFeatures; "none" -> None.

    Raises FileNotFoundError where there is no such file, and what `read_vgg` does.
    """
    if kind == "none":
        return None
    if kind == "random_features":
        return RandomFeatures(num_channels)
    if kind is None or not Path(kind).is_file():
        raise FileNotFoundError(f"`perceptual` is a file of VGG16's weights or one of {', '.join(NAMED)}: no {kind}.")
    return LPIPS(read_vgg(kind))


def read_vgg(path: str | Path) -> dict[str, Tensor]:
    """The weights of LPIPS: "0.weight", "0.bias", ... as torchvision numbers VGG16's features, and "lin0" to "lin4".

    The file may be torchvision's (`features.0.weight`), a checkpoint of taming-transformers with its losses
    (`loss.perceptual_loss.net.slice1.0.weight`), or either as safetensors; it is read without being executed. Where it
    has no lins they come from the package `lpips` or torchmetrics. Raises ValueError where it has none of VGG16's.
    """
    path = Path(path)
    content = load_file(path) if path.suffix == ".safetensors" else read_torch(path).content
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    found = {
        name: tensor for key, tensor in state.items() if (name := plain_name(str(key))) and isinstance(tensor, Tensor)
    }
    if not any(name.endswith(".weight") for name in found):
        raise ValueError(f"{path} has none of VGG16's weights: neither features.* nor perceptual_loss.net.*.")
    return found if "lin0" in found else found | packaged_lins()


def plain_name(key: str) -> str | None:
    """What `read_vgg` calls a weight that a file has under `key`, or None for what LPIPS does not need."""
    *front, position, kind = ["", "", *key.split(".")]
    if key.endswith(".model.1.weight"):
        return next((part for part in front if part.startswith("lin")), None)
    known = front[-1] == "features" or front[-1].startswith("slice")
    return f"{position}.{kind}" if known and position.isdigit() and kind in ("weight", "bias") else None


def packaged_lins() -> dict[str, Tensor]:
    """The channels' weights of LPIPS 0.1, which `lpips` and torchmetrics both carry as the same file.

    Neither is imported: `lpips` wants torchvision, which does not load beside every build of torch.
    """
    for package, *place in LINS:
        found = find_spec(package)
        if found is not None and found.submodule_search_locations:
            content = read_torch(Path(found.submodule_search_locations[0], *place)).content
            return {name: tensor for key, tensor in content.items() if (name := plain_name(key))}
    raise ModuleNotFoundError("LPIPS needs its channels' weights: pip install 'noria[metrics]'.")


def convolution(state: Mapping[str, Tensor], position: int, width_in: int, width_out: int) -> nn.Conv2d:
    layer = nn.Conv2d(width_in, width_out, 3, padding=1)
    weights = {name: checked(state, f"{position}.{name}", tensor.shape) for name, tensor in layer.named_parameters()}
    layer.load_state_dict(weights)
    return layer


def checked(state: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in state:
        raise ValueError(f"the weights of LPIPS' network lack {name}.")
    if tuple(state[name].shape) != tuple(shape):
        raise ValueError(f"{name} of LPIPS' network must be {tuple(shape)}, not {tuple(state[name].shape)}.")
    return state[name]


def unit(x: Tensor) -> Tensor:
    """x (b c h w) with channels of length 1, in single precision at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # The root is 0 where all channels are, with an infinite gradient that the mask keeps out.
    squares = x.square().sum(1, keepdim=True)
    return x / (torch.where(squares > 0, squares, 1).sqrt() * (squares > 0) + EPSILON)
