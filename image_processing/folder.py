"""A folder of images as a dataset."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from .vqgan import NoriaVQGANImageProcessor

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def find_images(folder: str | os.PathLike) -> list[Path]:
    """The image files in a folder and those below, sorted by path.

    Raises NotADirectoryError where there is no such folder, ValueError where it holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {root}.")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        raise ValueError(f"the folder {root} holds no image: no file ends in {', '.join(ENDINGS)}.")
    return found


class ImageFolder(Dataset):
    """The images of a folder, read when they are asked for: {"pixel_values": (c h w)}.

    Raises what `find_images` does, and ValueError naming the file when a damaged one is asked for.
    """

    def __init__(self, folder: str | os.PathLike, processor: NoriaVQGANImageProcessor) -> None:
        self.paths, self.processor = find_images(folder), processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.processor(self.paths[index], return_tensors="pt")["pixel_values"][0]}
