"""What is lost when images go through a model's codes: PSNR, SSIM, LPIPS and rFID, with what they were computed on.

PSNR, SSIM and rFID are torchmetrics' own. LPIPS and rFID compare features of trained networks: without the networks'
weights they are not computed, and the result says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..modeling.vqgan import NoriaVQGANModel
from .codebook_usage import CodebookUsage
from .perceptual import FeatureDistance, make_perceptual

NO_WEIGHTS = "not computed: no backbone weights"
SSIM_WINDOW = 11


@torch.no_grad()
def evaluate_reconstruction(
    model: NoriaVQGANModel,
    images: Iterable[Tensor | Mapping[str, Tensor]],
    *,
    batch_size: int = 16,
    resize: int | None = None,
    lpips: str | Path | FeatureDistance | None = None,
    inception: str | Path | nn.Module | None = None,
) -> dict[str, Any]:
    """Encodes and decodes images (c h w) in [-1, 1], or rows {"pixel_values": (c h w)}, and compares.

    resize: images are brought to squares of this size first, by a bicubic resize of the shorter side and a crop of the
    middle. lpips: VGG16's weights, as `read_vgg` reads them. inception: the weights of torch-fidelity's Inception, or
    a network from uint8 images (b 3 h w) to features (b d).
    Returns means over images: psnr (decibels), ssim, lpips, and rfid of all images; codebook_usage and
    codebook_perplexity; samples, size, resize, lpips_backbone, rfid_backbone. What cannot be computed is a
    sentence that says why. Raises ValueError where there is no image or where sizes differ in a batch,
    ModuleNotFoundError where torchmetrics is not installed.
    """
    measures = Measures(lpips, inception, model.device)
    usage = CodebookUsage(model.config.num_codes)
    training, iterator = model.training, iter(images)
    model.eval()
    try:
        for batch in batches(iterator, batch_size, resize):
            pixels = batch.to(model.device)
            codes = model.encode(pixels).codes
            usage.add(codes)
            measures.update(model.decode_codes(codes).float().clamp(-1, 1), pixels.float())
    finally:
        model.train(training)
    if not measures.samples:
        raise ValueError("there is no image to evaluate.")
    how = "none" if resize is None else f"shorter side to {resize}, bicubic with antialiasing, middle crop"
    return measures.result() | usage.measures() | {"resize": how}


def describe(measures: Mapping[str, Any]) -> str:
    """The result of `evaluate_reconstruction` as lines of text, what it was computed on first."""
    first = ["samples", "size", "resize", "lpips_backbone", "rfid_backbone"]
    order = [*first, *(name for name in measures if name not in first)]
    lines = []
    for name in order:
        value = measures[name]
        lines.append(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    return "\n".join(lines)


class Measures:
    """Everything that is measured, batch by batch."""

    def __init__(
        self,
        lpips: str | Path | FeatureDistance | None,
        inception: str | Path | nn.Module | None,
        device: torch.device,
    ) -> None:
        image = torchmetrics_image()
        self.samples, self.sizes = 0, set()
        self.psnr = image.PeakSignalNoiseRatio(data_range=2.0, dim=(1, 2, 3)).to(device)
        self.ssim = image.StructuralSimilarityIndexMeasure(data_range=2.0).to(device)
        if lpips is not None and not isinstance(lpips, FeatureDistance):
            lpips = make_perceptual(lpips)
        self.perceptual = None if lpips is None else lpips.to(device)
        self.distances: list[Tensor] = []
        self.backbone, self.fid = "none", None
        if inception is not None:
            self.backbone, self.fid = inception_distance(inception)
            self.fid = self.fid.to(device)

    def update(self, reconstruction: Tensor, pixels: Tensor) -> None:
        """Both (b c h w) in [-1, 1]."""
        self.samples += len(pixels)
        self.sizes.add("x".join(map(str, pixels.shape[2:])))
        self.psnr.update(reconstruction, pixels)
        if min(pixels.shape[2:]) < SSIM_WINDOW:
            self.ssim = None
        elif self.ssim is not None:
            self.ssim.update(reconstruction, pixels)
        if self.perceptual is not None:
            self.distances.append(self.perceptual(reconstruction, pixels).flatten())
        if self.fid is not None:
            self.fid.update(levels(pixels), real=True)
            self.fid.update(levels(reconstruction), real=False)

    def result(self) -> dict[str, Any]:
        few = f"not computed: images are smaller than its window of {SSIM_WINDOW} pixels"
        lpips = torch.cat(self.distances).mean().item() if self.distances else NO_WEIGHTS
        return {
            "psnr": self.psnr.compute().item(),
            "ssim": few if self.ssim is None else self.ssim.compute().item(),
            "lpips": lpips,
            "rfid": NO_WEIGHTS if self.fid is None else self.frechet(),
            "samples": self.samples,
            "size": ", ".join(sorted(self.sizes)),
            "lpips_backbone": "none" if self.perceptual is None else type(self.perceptual).__name__,
            "rfid_backbone": self.backbone,
        }

    def frechet(self) -> float | str:
        return self.fid.compute().item() if self.samples > 1 else "not computed: it takes two images at least"


def torchmetrics_image() -> ModuleType:
    try:
        import torchmetrics.image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("measures of images need torchmetrics: pip install 'noria[metrics]'.") from error
    return torchmetrics.image


def inception_distance(inception: str | Path | nn.Module) -> tuple[str, nn.Module]:
    """The backbone's name, and torchmetrics' Fréchet distance on it."""
    torchmetrics_image()
    from torchmetrics.image.fid import FrechetInceptionDistance as make

    if isinstance(inception, nn.Module):
        return type(inception).__name__, make(feature=inception)
    if not Path(inception).is_file():
        raise FileNotFoundError(f"`inception` is a file of Inception's weights or a network: there is no {inception}.")
    return f"Inception-v3 of {Path(inception).name}", make(feature_extractor_weights_path=str(inception))


def batches(images: Iterator[Tensor | Mapping[str, Tensor]], size: int, resize: int | None) -> Iterator[Tensor]:
    """Images, one by one, -> (b c h w) with b = size, less in the last one."""
    while chunk := list(islice(images, size)):
        rows = [torch.as_tensor(row["pixel_values"] if isinstance(row, Mapping) else row) for row in chunk]
        rows = rows if resize is None else [squared(row, resize) for row in rows]
        shapes = {tuple(row.shape) for row in rows}
        if len(shapes) > 1 or rows[0].ndim != 3:
            raise ValueError(
                f"the images of a batch must be (c h w) of one size, not {sorted(shapes)}: give `resize`."
            )
        yield torch.stack(rows)


def squared(image: Tensor, size: int) -> Tensor:
    """image (c h w) -> (c size size), the middle of what a resize of the shorter side gives."""
    height, width = image.shape[-2:]
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    if target != (height, width):
        image = interpolate(image[None].float(), target, mode="bicubic", antialias=True)[0].clamp(-1, 1)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return image[:, top : top + size, left : left + size]


def levels(pixels: Tensor) -> Tensor:
    """pixels (b c h w) in [-1, 1] -> the 256 levels of an image file, with three channels."""
    rounded = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rounded.expand(-1, 3, -1, -1) if rounded.shape[1] == 1 else rounded
