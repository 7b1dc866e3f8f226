"""Images for VQGAN, and back: any image as pixels from -1 to 1 of a size that the model takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs
from transformers.utils import requires_backends

from .geometry import Frame, apply, edge_sizes, frame
from .reading import describe, flatten_images, flatten_maps, read_image, read_labels
from .writing import to_labels, to_pictures

NEAREST, BICUBIC = 0, 3
CHANNELS = (1, 3, 4)


class NoriaVQGANImageProcessorKwargs(ImagesKwargs, total=False):
    """What `NoriaVQGANImageProcessor` takes beside what all image processors take."""

    multiple_of: int
    num_channels: int
    background: str
    max_pixels: int
    num_labels: int | None
    shift_labels: bool


class NoriaVQGANImageProcessor(BaseImageProcessor):
    """Reads, scales, cuts and normalises images, makes one-hot maps of labels, and turns pixels into pictures again.

        batch = processor(images, return_tensors="pt")              # {"pixel_values": (b c h w)}
        batch = processor(images, segmentation_maps=maps, ...)      # and {"condition": (b labels h w)}
        batch = processor(segmentation_maps=maps, ...)              # {"pixel_values": (b labels h w)}
        pictures = processor.post_process(pixels)                   # a list of PIL images

    An image is a path, an address, a PIL image, an array or a tensor; (h w), (h w c) or (c h w) in 0..255 as uint8, in
    0..65535 as uint16, in 0..1 as floating numbers. Grey, 16-bit, palette and transparent images are welcome; EXIF's
    orientation is applied. Every option may be given for one call, too.

    do_resize, size, resample: scale the shortest edge to `size`, or to {"height", "width"}; bicubic.
    do_center_crop, crop_size: cut a square of `crop_size`, or {"height", "width"}, from the middle. Without, sides are
        cut to the next lower multiple of `multiple_of`.
    do_normalize: values from -1 to 1, else from 0 to 1.
    multiple_of: what sides must be multiples of, the model's `downsampling`.
    num_channels: 3, 1 (grey) or 4 (with transparency).
    background: the colour that is seen through transparent places, as a name or #rrggbb.
    max_pixels: larger images are refused before they are decoded.
    num_labels, shift_labels: channels of one-hot maps. With the shift, label n is channel n + 1, and 255, which stands
        for no label in files of 8 bits, is channel 0; so COCO's 183 are made.

    Raises ValueError, naming the file, for an image that is damaged, too large, or has values out of range;
    FileNotFoundError; ImportError without Pillow.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = NoriaVQGANImageProcessorKwargs

    def __init__(
        self,
        do_resize: bool = True,
        size: int | dict[str, int] = 256,
        resample: int = BICUBIC,
        do_center_crop: bool = True,
        crop_size: int | dict[str, int] | None = 256,
        do_normalize: bool = True,
        multiple_of: int = 16,
        num_channels: int = 3,
        background: str = "white",
        max_pixels: int = 2**26,
        num_labels: int | None = None,
        shift_labels: bool = False,
        **kwargs: Any,
    ) -> None:
        requires_backends(self, ["vision"])
        super().__init__(**kwargs)
        self.do_resize, self.do_center_crop, self.do_normalize = do_resize, do_center_crop, do_normalize
        self.size, self.crop_size = size, crop_size
        self.resample, self.multiple_of, self.num_channels = int(resample), multiple_of, num_channels
        self.background, self.max_pixels = background, max_pixels
        self.num_labels, self.shift_labels = num_labels, shift_labels
        self.check()

    @classmethod
    def for_model(cls, model: Any, **options: Any) -> NoriaVQGANImageProcessor:
        """The processor that fits a model, or its configuration: of a first stage, or of a second with its first.

        `options` go before what the configuration says. Raises ValueError for a configuration without images.
        """
        config: PreTrainedConfig = getattr(model, "config", model)
        condition = getattr(config, "condition_vqgan_config", None)
        config = getattr(config, "vqgan_config", None) or config
        if not hasattr(config, "downsampling"):
            raise ValueError(f"a configuration of type {config.model_type!r} does not say what images it takes.")
        side = max(1, config.image_size // config.downsampling) * config.downsampling
        found: dict[str, Any] = {"size": side, "crop_size": side, "multiple_of": config.downsampling}
        for stage in (condition, config):
            if getattr(stage, "task", None) == "segmentation":
                found["num_labels"] = stage.num_channels
        if config.task != "segmentation":
            found["num_channels"] = config.num_channels
        return cls(**{**found, **options})

    def check(self) -> None:
        """Raises ValueError for an option that cannot be; makes sizes dictionaries."""
        self.size = edge_sizes(self.size, "size", allow_shortest=True)
        if self.crop_size is not None:
            self.crop_size = edge_sizes(self.crop_size, "crop_size", allow_shortest=False)
        if self.num_channels not in CHANNELS:
            raise ValueError(f"`num_channels` of images must be 1, 3 or 4, not {self.num_channels}.")
        for name in ("multiple_of", "max_pixels", "num_labels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, not {value}.")
        wrong = [edge for edge in (self.crop_size or {}).values() if edge % self.multiple_of]
        if self.do_center_crop and wrong:
            below = wrong[0] // self.multiple_of * self.multiple_of or self.multiple_of
            raise ValueError(f"`crop_size` must be multiples of {self.multiple_of}, such as {below}, not {wrong[0]}.")

    def preprocess(
        self,
        images: Any = None,
        segmentation_maps: Any = None,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Images, or maps of labels, or both, which then are cut alike; see the class.

        return_tensors: "pt" or "np" for one array, which wants images of one size; by default a list of arrays.
        input_data_format: "channels_first" or "channels_last", for arrays of which both could be true.
        """
        used = self.with_options(options) if options else self
        if images is None and segmentation_maps is None:
            raise ValueError("there is nothing to process: give `images`, `segmentation_maps`, or both.")
        found: dict[str, list[np.ndarray]] = {}
        frames = None
        if images is not None:
            found["pixel_values"], frames = used.read_all(images, input_data_format)
        if segmentation_maps is not None:
            name = "pixel_values" if images is None else "condition"
            found[name] = used.one_hot_all(segmentation_maps, frames)
        if return_tensors is not None:
            for name, arrays in found.items():
                check_shapes(name, arrays)
        return BatchFeature(data=found, tensor_type=return_tensors)

    def post_process(self, pixel_values: Tensor, output_type: str = "pil") -> Any:
        """Pixels (b c h w) that a model made, cut off at their bounds, as pictures.

        output_type: "pil" for a list of PIL images, "np" for float32 (b h w c) and "pt" for float32 (b c h w), both
        from 0 to 1. Raises ValueError for another type, other shapes, and values that are not finite.
        """
        return to_pictures(pixel_values, output_type, -1 if self.do_normalize else 0)

    def post_process_semantic_segmentation(self, logits: Tensor) -> list[Tensor]:
        """logits (b labels h w) of a segmentation model -> for each map its labels (h w), as they were in its file."""
        return to_labels(logits, self.shift_labels)

    def to_dict(self) -> dict[str, Any]:
        """The options. `crop_size` is told even where it is None, which is not its default."""
        return {**super().to_dict(), "crop_size": self.crop_size}

    def __call__(self, images: Any = None, *args: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)

    def with_options(self, options: dict[str, Any]) -> NoriaVQGANImageProcessor:
        known = {name: value for name, value in self.to_dict().items() if not name.endswith("_type")}
        unknown = set(options) - set(known) - {"num_labels"}
        if unknown:
            raise ValueError(f"unknown option {min(unknown)!r}; there are {', '.join(sorted(known))}.")
        return type(self)(**{**known, **options})

    def read_all(self, images: Any, data_format: str | None) -> tuple[list[np.ndarray], list[tuple[int, int, Frame]]]:
        """Every image as (c h w), and its height, width and frame."""
        arrays, frames = [], []
        for image in flatten_images(images):
            planes = read_image(image, self.num_channels, self.background, self.max_pixels, data_format)
            width, height = planes[0].size
            kept = self.frame(height, width, describe(image))
            parts = [np.atleast_3d(apply(plane, kept, self.resample)).astype(np.float32) for plane in planes]
            pixels = np.concatenate(parts, axis=2).clip(0, 255)
            pixels = np.broadcast_to(pixels, (*pixels.shape[:2], self.num_channels)).transpose(2, 0, 1) / np.float32(
                255
            )
            arrays.append(np.ascontiguousarray(pixels * 2 - 1 if self.do_normalize else pixels))
            frames.append((height, width, kept))
        if not arrays:
            raise ValueError("there are no images: the list is empty.")
        return arrays, frames

    def one_hot_all(self, maps: Any, frames: list[tuple[int, int, Frame]] | None) -> list[np.ndarray]:
        """Every map as (labels h w), 1 where a label holds; scaled without mixing labels."""
        if self.num_labels is None:
            raise ValueError("`num_labels` says how many channels segmentation maps have; it is None.")
        planes = [read_labels(labels, self.max_pixels) for labels in flatten_maps(maps)]
        if frames is not None and [(plane.height, plane.width) for plane in planes] != [x[:2] for x in frames]:
            raise ValueError("there must be one segmentation map for each image, of the same height and width.")
        kept = [x[2] for x in frames] if frames else [self.frame(x.height, x.width, "the map") for x in planes]
        if not planes:
            raise ValueError("there are no segmentation maps: the list is empty.")
        return [self.one_hot(apply(plane, one, NEAREST)) for plane, one in zip(planes, kept, strict=True)]

    def one_hot(self, labels: np.ndarray) -> np.ndarray:
        labels = (labels + 1) % 256 if self.shift_labels else labels
        low, high = labels.min(), labels.max()
        assert self.num_labels is not None
        if low < 0 or high >= self.num_labels:
            shifted = ", after the shift" if self.shift_labels else ""
            wrong = low if low < 0 else high
            raise ValueError(f"labels must lie in 0..{self.num_labels - 1}{shifted}, not be {wrong}.")
        return (labels == np.arange(self.num_labels)[:, None, None]).astype(np.float32)

    def frame(self, height: int, width: int, name: str) -> Frame:
        size, crop = self.size if self.do_resize else None, self.crop_size if self.do_center_crop else None
        kept = frame(height, width, size, crop, self.multiple_of, name)
        if kept.height * kept.width > self.max_pixels:
            raise ValueError(
                f"{name} would get {kept.height} x {kept.width} pixels, over `max_pixels` ({self.max_pixels}): give "
                "a `crop_size`."
            )
        return kept


def check_shapes(name: str, arrays: list[np.ndarray]) -> None:
    """Raises ValueError unless all arrays are of one shape."""
    sizes = sorted({array.shape[1:] for array in arrays})
    if len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sizes[:4])
        raise ValueError(f"{name} of {shown} pixels do not fit into one array: give a `crop_size`, or take a list.")


__all__ = ["NoriaVQGANImageProcessor"]
