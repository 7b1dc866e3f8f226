"""What is asked of an image, as the tokens that stand before its codes.

one token        (b 1):       class, or the one that unconditional models begin with
a map            (b h w):     coordinates, or codes of a map that another first stage has encoded
a sequence       (b n):       tokens as they are, as those of objects and their places in a scene
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import readable


def class_ids(condition, count: int, names: dict[str, int], device: torch.device) -> Tensor:
    """Class numbers (b) or (b 1), one number, names, or a mix of both as a list -> ids (b 1).

    Raises ValueError for a class that is none of `count`, or a name that is not known.
    """
    if isinstance(condition, str | int):
        condition = [condition]
    if not isinstance(condition, Tensor):
        unknown = [x for x in condition if isinstance(x, str) and x not in names]
        if unknown:
            raise ValueError(f"unknown class {unknown[0]!r}; known: {', '.join(sorted(names)[:20])}.")
        condition = torch.tensor([names[x] if isinstance(x, str) else int(x) for x in condition])
    ids = condition.to(device)
    if ids.dim() == 0:
        ids = ids[None]
    if ids.dim() == 2 and ids.shape[1] == 1:
        ids = ids[:, 0]
    if ids.dim() != 1 or ids.is_floating_point():
        shape = tuple(condition.shape)
        raise ValueError(f"classes are integers of shape (batch), not {condition.dtype} of shape {shape}.")
    check_ids(ids, count, "classes")
    return ids.long()[:, None]


def coordinate_ids(coordinates: Tensor, levels: int, downsampling: int) -> Tensor:
    """Coordinates (b 1 H W) in 0..1 -> ids (b h w) = round(levels * their mean over each square of pixels).

    In single precision at least: half precision cannot count to 1,024 places. Raises ValueError for another shape, for
    values outside of 0..1, and for sides that `downsampling` does not divide.
    """
    if coordinates.dim() != 4 or coordinates.shape[1] != 1:
        raise ValueError(f"coordinates have the shape (batch, 1, height, width), not {tuple(coordinates.shape)}.")
    if min(coordinates.shape[2:]) < 1 or any(side % downsampling for side in coordinates.shape[2:]):
        height, width = coordinates.shape[2:]
        raise ValueError(f"the sides of the coordinates ({height}x{width}) must be multiples of {downsampling}.")
    if readable(coordinates) and not ((coordinates >= 0) & (coordinates <= 1)).all():
        raise ValueError("coordinates lie between 0 and 1.")
    wide = coordinates.to(torch.promote_types(coordinates.dtype, torch.float32))
    means = F.interpolate(wide, scale_factor=1 / downsampling, mode="area").clamp(0, 1)
    return (levels * means).round().long()[:, 0]


def make_coordinates(batch: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(b 1 H W), each pixel's place in reading order, from 0 to 1: what models of coordinates are trained with."""
    places = torch.arange(height * width, device=device, dtype=torch.float32) / (height * width)
    return places.view(1, 1, height, width).expand(batch, -1, -1, -1)


def token_ids(condition, length: int, device: torch.device) -> Tensor:
    """Tokens (b n) or (b h w), integers -> (b n). Raises ValueError for another length or kind."""
    ids = torch.as_tensor(condition, device=device)
    if ids.is_floating_point() or ids.dim() < 2 or ids[0].numel() != length:
        raise ValueError(
            f"the condition must be {length} integers for each image, not {ids.dtype} of shape {tuple(ids.shape)}."
        )
    return ids.long().flatten(1)


def map_codes(condition: Tensor, count: int) -> Tensor:
    """Codes of a map (b h w), or (b n) of one that is square -> (b h w). Raises ValueError for what is none."""
    if condition.dim() == 2:
        side = round(condition.shape[1] ** 0.5)
        if side * side != condition.shape[1]:
            raise ValueError(f"{condition.shape[1]} codes are no square: give them as (batch, height, width).")
        condition = condition.unflatten(1, (side, side))
    if condition.dim() != 3:
        raise ValueError(f"codes have the shape (batch, height, width), not {tuple(condition.shape)}.")
    check_ids(condition, count, "codes of the condition")
    return condition.long()


def check_ids(ids: Tensor, count: int, what: str) -> None:
    """Raises ValueError unless all `ids` lie in 0..count-1."""
    if readable(ids) and ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= count):
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(f"{what} are numbers from 0 to {count - 1}: {wrong} is none.")


def crop(ids: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """The part of a map of ids (b h w) that a window sees, as tokens (b n); ids without places (b n) as they are."""
    return ids if ids.dim() == 2 else ids[:, top : top + height, left : left + width].flatten(1)
