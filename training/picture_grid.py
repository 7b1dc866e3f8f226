"""Pictures side by side in one PNG."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..image_processing.writing import to_pictures

GAP, SCALE, LETTER = 2, 3, 7


def draw_grid(rows: Sequence[Tensor], path: Path, names: Sequence[str] | None = None, scale: int = SCALE) -> None:
    """Writes rows of pictures, each (n 3 h w) in [-1, 1] and all of one size, as a PNG on white.

    names: what is written before each row. scale: each pixel becomes a square of so many. Raises ImportError without
    Pillow, ValueError where pictures differ in size or names in number.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise ImportError(f"{path.name} is drawn with Pillow, which is missing: pip install 'noria[image]'") from error
    sizes = {tuple(row.shape[1:]) for row in rows}
    if len(sizes) != 1 or (names is not None and len(names) != len(rows)):
        raise ValueError(f"a grid wants pictures of one size and a name for each row: {sizes}, {names}")
    _, height, width = sizes.pop()
    height, width, gap = height * scale, width * scale, GAP * scale
    left = LETTER * max(map(len, names)) + 2 * gap if names else gap
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (left + columns * (width + gap), gap + len(rows) * (height + gap)), "white")
    for y, row in enumerate(rows):
        top = gap + y * (height + gap)
        for x, picture in enumerate(to_pictures(row, "pil", low=-1)):
            larger = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(larger, (left + x * (width + gap), top))
        if names:
            ImageDraw.Draw(sheet).text((gap, top + height // 2), names[y], fill="black", anchor="lm")
    sheet.save(path)
