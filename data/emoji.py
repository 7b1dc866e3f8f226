"""The embedded pictures: 1,911 emoji of 32x32 pixels in ten categories, with a split that never changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor

from .held_out import by_content
from .lines import json_lines

CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Component",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
SIDE, BORDER = 32, 1


@dataclass(frozen=True, eq=False)
class Emoji:
    """One picture: its `name`, its `category`, an index into CATEGORIES, and `pixels` (3 32 32), uint8, on white."""

    name: str
    category: int
    pixels: Tensor


def emoji() -> list[Emoji]:
    """Reads all pictures in the order of `noto_emoji_labels.jsonl.gz`, from a checkout or a wheel.

    Raises ImportError without Pillow, which decodes the sheet.
    """
    sheet = read_sheet("noto_emoji_32.png")
    cell = SIDE + 2 * BORDER
    found = []
    for name, category, column, row in json_lines("noto_emoji_labels"):
        top, left = row * cell + BORDER, column * cell + BORDER
        found.append(Emoji(name, category, sheet[:, top : top + SIDE, left : left + SIDE].clone()))
    return found


def read_sheet(name: str) -> Tensor:
    """A shipped picture with everything transparent laid over white: (3 height width), uint8."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("the emoji are read with Pillow, which is missing: pip install 'noria[image]'") from error
    with files(__package__).joinpath(name).open("rb") as file, Image.open(file) as image:
        painted = image.convert("RGBA")
    white = Image.new("RGBA", painted.size, "white")
    flat = Image.alpha_composite(white, painted).convert("RGB")
    return torch.frombuffer(bytearray(flat.tobytes()), dtype=torch.uint8).view(*flat.size[::-1], 3).permute(2, 0, 1)


def split(pictures: Sequence[Emoji], held_out: float = 0.05) -> tuple[list[Emoji], list[Emoji]]:
    """Splits pictures into (train, held out); the share `held_out` is met on average.

    The side depends on the pixels alone (their SHA-256), so that the pictures that occur under several names never lie
    on both sides. Raises ValueError unless 0 <= held_out <= 1.
    """
    return by_content(pictures, lambda picture: picture.pixels.contiguous().numpy().tobytes(), held_out)
