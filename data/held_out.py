"""Which part of an embedded collection is held out: decided by what each item is, not by where it stands."""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def by_content(items: Iterable[Item], content: Callable[[Item], bytes], share: float) -> tuple[list[Item], list[Item]]:
    """Splits items into (train, held out); `share`, that of the held-out part, is met on average.

    The side depends on the SHA-256 of an item's `content` alone: it does not change with the order or the number of
    the items, and items of equal content never lie on both sides. Raises ValueError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"held_out must be a share between 0 and 1, got {share!r}")
    sides: tuple[list[Item], list[Item]] = ([], [])
    for item in items:
        digest = hashlib.sha256(content(item)).digest()
        sides[int.from_bytes(digest[:8], "big") < share * 2**64].append(item)
    return sides
