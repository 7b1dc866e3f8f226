"""Images as they come (files, addresses, PIL images, arrays) as planes: PIL images whose values go from 0 to 255.

An image of 8 bits is one plane, of mode L, RGB or RGBA. One of 16 bits or of floating numbers is a plane of mode F for
each channel, so that no digit is lost before it is resized.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.image_utils import load_image
from transformers.utils import is_vision_available

if is_vision_available():
    from PIL import Image, ImageColor, ImageOps

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# What decoders raise for damaged files, beside the ValueError of some.
DAMAGE = (OSError, SyntaxError, EOFError, IndexError, OverflowError, ValueError, struct.error, zlib.error)


def flatten_images(images: Any) -> Iterator[Any]:
    """One image, a list of any depth, or an array of four dimensions, as single images."""
    if isinstance(images, list | tuple):
        for image in images:
            yield from flatten_images(image)
    elif isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        yield from images
    else:
        yield images


def flatten_maps(maps: Any) -> Iterator[Any]:
    """One map of labels, a list of any depth, or an array (b h w) or (b 1 h w), as single maps."""
    is_array = isinstance(maps, np.ndarray | torch.Tensor)
    if isinstance(maps, list | tuple) or (is_array and (maps.ndim == 4 or (maps.ndim == 3 and maps.shape[2] != 1))):
        for one in maps:
            yield from flatten_maps(one)
    else:
        yield maps


def describe(image: Any) -> str:
    """What an error calls an image: its file, if it has one."""
    if isinstance(image, str | os.PathLike):
        return f"the image {os.fspath(image)}"
    name = getattr(image, "filename", "")
    return f"the image {name}" if name else "the image"


def read_image(image: Any, channels: int, background: str, max_pixels: int, data_format: str | None) -> list[Any]:
    """An image's planes: one of mode L, RGB or RGBA for 1, 3 or 4 `channels`, or so many, or one, of mode F.

    Transparent places show `background`, unless there are 4 channels; EXIF's orientation is applied. Raises
    ValueError, naming the file, for one that is damaged, has more than `max_pixels`, or values out of range.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        pixels = channels_last(image, data_format)
        check_size(pixels.shape[1], pixels.shape[0], max_pixels, "the image")
        if pixels.dtype != np.uint8:
            return planes_of(to_bytes_range(pixels, "the image"), channels, background)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image, name = open_image(image, max_pixels), describe(image)
    if image.mode.startswith(("I", "F")):
        return planes_of(to_bytes_range(deep_values(image), name), channels, background)
    return [convert(image, channels, background)]


def read_labels(labels: Any, max_pixels: int) -> Any:
    """A map of label numbers, of which palettes' colours are left aside, as a PIL image of mode I.

    Raises ValueError for a map with colours or fractions, and where `read_image` would.
    """
    name = describe(labels)
    if isinstance(labels, np.ndarray | torch.Tensor):
        array = np.asarray(labels)
        array = array.squeeze(0) if array.ndim == 3 and array.shape[0] == 1 else array
        array = array.squeeze(-1) if array.ndim == 3 and array.shape[-1] == 1 else array
        check_size(array.shape[-1] if array.ndim else 0, array.shape[0] if array.ndim else 0, max_pixels, name)
    else:
        array = np.asarray(open_image(labels, max_pixels))
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise ValueError(
            f"a segmentation map holds a whole number for each place, of shape (h w); {name} is of shape "
            f"{array.shape} and dtype {array.dtype}."
        )
    return Image.fromarray(array.astype(np.int32))


def open_image(source: Any, max_pixels: int) -> Any:
    """A PIL image, read to its end and upright, of a path, an address (http, https) or a PIL image."""
    name = describe(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        source = load_image(source)
    if not isinstance(source, str | os.PathLike | Image.Image):
        raise ValueError(f"an image must be a file, an array, a tensor or a PIL image, not {type(source).__name__}.")
    if isinstance(source, Image.Image):
        return load(source, max_pixels, name)
    if not Path(source).is_file():
        raise FileNotFoundError(f"{name} cannot be read: there is no such file.")
    try:
        opened = Image.open(source)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except DAMAGE as error:
        raise ValueError(f"{name} cannot be read: it is damaged, or no image ({error}).") from error
    with opened:
        return load(opened, max_pixels, name)


def load(image: Any, max_pixels: int, name: str) -> Any:
    check_size(*image.size, max_pixels, name)
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGE as error:
        raise ValueError(f"{name} cannot be read: it is damaged ({error}).") from error


def check_size(width: int, height: int, max_pixels: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"{name} is empty: {width} x {height} pixels.")
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} pixels, more than `max_pixels` ({max_pixels}): make it smaller, or raise "
            "the bound if it can be trusted."
        )


def channels_last(image: np.ndarray | torch.Tensor, data_format: str | None) -> np.ndarray:
    """(h w), (h w c) or (c h w) -> (h w c). Where both ends may be channels, tensors have them first, arrays last."""
    first = isinstance(image, torch.Tensor)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if image.ndim == 2:
        return image[..., None]
    if image.ndim == 3 and data_format is None:
        can_be_first, can_be_last = image.shape[0] in MODES, image.shape[2] in MODES
        data_format = "channels_first" if can_be_first and (first or not can_be_last) else "channels_last"
    if image.ndim == 3 and data_format == "channels_first":
        image = np.moveaxis(image, 0, -1)
    if image.ndim != 3 or image.shape[2] not in MODES:
        raise ValueError(
            f"an array of an image must be of shape (h w), (h w c) or (c h w) with 1 to 4 channels, not {image.shape}."
        )
    return np.ascontiguousarray(image)


def deep_values(image: Any) -> np.ndarray:
    """A PIL image of more than 8 bits as (h w 1); whole numbers are those of 16 bits."""
    array = np.asarray(image)
    if array.dtype.kind in "bui":
        low, high = int(array.min()), int(array.max())
        if not 0 <= low <= high < 2**16:
            raise ValueError(f"{describe(image)} has values from {low} to {high}; of 16 bits are 0 to 65535.")
        array = array.astype(np.uint16)
    return array[..., None]


def to_bytes_range(pixels: np.ndarray, name: str) -> np.ndarray:
    """Values of any dtype as float32 from 0 to 255. Raises ValueError for those out of their dtype's range."""
    kind = pixels.dtype
    top = 65535 if kind == np.uint16 else 255 if kind.kind in "ui" else 1
    if kind.kind not in "buif":
        raise ValueError(f"{name} holds numbers of type {kind}; they must be real.")
    if not np.isfinite(pixels).all():
        raise ValueError(f"{name} holds values that are NaN or infinite.")
    low, high = pixels.min().item(), pixels.max().item()
    if low < 0 or high > top:
        raise ValueError(f"values of {kind} must lie in 0..{top}; those of {name} go from {low:.6g} to {high:.6g}.")
    return pixels.astype(np.float32) * np.float32(255 / top)


def planes_of(pixels: np.ndarray, channels: int, background: str) -> list[Any]:
    """(h w c), float32 from 0 to 255 -> a plane of mode F for each channel, or one where all would be the same."""
    if pixels.shape[2] in (2, 4) and channels != 4:
        alpha = pixels[..., -1:] / 255
        colour = np.array(ImageColor.getrgb(background)[:3], dtype=np.float32)
        pixels = pixels[..., :-1] * alpha + colour * (1 - alpha)
    if channels == 4 and pixels.shape[2] < 4:
        alpha = pixels[..., -1:] if pixels.shape[2] == 2 else np.full_like(pixels[..., :1], 255)
        colour = pixels if pixels.shape[2] == 3 else np.repeat(pixels[..., :1], 3, axis=2)
        pixels = np.concatenate([colour, alpha], axis=2)
    if channels == 1 and pixels.shape[2] == 3:
        pixels = pixels @ LUMA[:, None]
    return [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in range(pixels.shape[2])]


def convert(image: Any, channels: int, background: str) -> Any:
    """A PIL image of 8 bits in the mode that belongs to `channels`. Raises ValueError where no way leads there."""
    try:
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGBA", "La", "RGBa"):
            image = image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{describe(image)} has colours of mode {image.mode}: convert it to RGB first.") from error
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, ImageColor.getrgb(background)[:3])
        image = Image.alpha_composite(below, image)
    return image.convert(MODES[channels])
