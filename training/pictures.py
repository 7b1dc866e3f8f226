"""Pictures and their codes as rows for a Trainer."""

from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset


def as_pixels(pictures: Tensor) -> Tensor:
    """uint8 from 0 to 255 as float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


class ShiftedPictures(Dataset):
    """Each picture (n c h w), uint8, at each place up to `reach` pixels from its own: rows {"pixel_values": (c h w)}.

    Edges are continued with white. The rows are numbered, not drawn, so that an order of them says everything.
    """

    def __init__(self, pictures: Tensor, reach: int = 0) -> None:
        self.pictures, self.places, self.size = pad(pictures, [reach] * 4, value=255), 2 * reach + 1, pictures.shape

    def __len__(self) -> int:
        return len(self.pictures) * self.places**2

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        picture, place = divmod(index, self.places**2)
        top, left = divmod(place, self.places)
        height, width = self.size[-2:]
        return {"pixel_values": as_pixels(self.pictures[picture, :, top : top + height, left : left + width])}


class CodedPictures(Dataset):
    """Codes (n h w) with their classes (n): rows {"codes", "condition"}."""

    def __init__(self, codes: Tensor, classes: Tensor) -> None:
        self.codes, self.classes = codes, classes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"codes": self.codes[index], "condition": self.classes[index]}
