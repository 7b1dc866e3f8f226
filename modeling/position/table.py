"""The encodings that are added to the embeddings, by the name a configuration gives them."""

from .base import PositionEncoding
from .sinusoidal import Sinusoidal


def make_absolute(name: str, dim: int) -> PositionEncoding:
    """The encoding called `name` for embeddings `dim` wide. Raises ValueError for a name that is not known."""
    if name == "none":
        return PositionEncoding()
    table = {"sinusoidal": Sinusoidal}
    if name not in table:
        raise ValueError(f"unknown position encoding {name!r}: choose from {['none', *table]}.")
    return table[name](dim)
