"""Writes a folder all or nothing: into a temporary sibling, which takes the target's name once it is complete."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


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


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes `tensors` with their own dtypes; ValueError names one whose dtype the format lacks."""
    try:
        save_file(independent(tensors), path, dict(metadata) if metadata is not None else None)
        # safetensors makes files that only their owner may read; the folder tells what is usual here.
        path.chmod(path.parent.stat().st_mode & 0o666)
    except KeyError as error:
        names = [name for name, tensor in tensors.items() if tensor.dtype == error.args[0]]
        raise ValueError(f"safetensors cannot hold {error.args[0]}, the dtype of {', '.join(names[:6])}") from error


def independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous, none sharing memory with another."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result
