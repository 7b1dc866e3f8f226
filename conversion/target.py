"""Writes a folder all or nothing: into a temporary sibling, which takes the target's name once it is complete."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_target(target: Path) -> None:
    """FileExistsError where `target` is taken: it may be missing or an empty folder."""
    if target.is_dir():
        if any(target.iterdir()):
            raise FileExistsError(f"the target {target} is not empty: give a new folder")
    elif target.exists() or target.is_symlink():
        raise FileExistsError(f"the target {target} is a file: give a new folder")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder to write into; it becomes `target` when the block ends, and vanishes when the block raises.

    OSError where the target cannot be written.
    """
    check_target(target)
    target = Path(os.path.realpath(target))
    part = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
    except OSError as error:
        raise type(error)(error.errno, f"the target {target} cannot be written ({error.strerror})") from error
    try:
        yield part
        os.replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
