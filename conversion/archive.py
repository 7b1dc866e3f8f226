"""Checkpoints as they are published: a zip archive that holds a folder, unpacked for as long as it is read."""

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

TORCH_MEMBERS = ("data.pkl", "constants.pkl")  # torch's own files are zip archives too


def is_archive(path: Path) -> bool:
    """Whether `path` is a zip archive of files, rather than a torch file."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(PurePosixPath(name).name in TORCH_MEMBERS for name in archive.namelist())


@contextmanager
def unpacked(path: Path, beside: Path) -> Iterator[Path]:
    """The folder that the archive `path` holds, in a temporary place on the disk of `beside`; any other path itself.

    An archive without a folder of its own is unpacked into one of its name. Raises ValueError for a damaged or
    encrypted archive and for members that lie outside it.
    """
    if not is_archive(path):
        yield path
        return
    place = next(parent for parent in beside.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=place) as temporary:
        root = Path(temporary) / path.stem
        root.mkdir()
        try:
            with zipfile.ZipFile(path) as archive:
                check_members(path, archive)
                archive.extractall(root)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise ValueError(f"{path} is not a readable zip archive: {error}") from error
        yield inner_folder(root)


def check_members(path: Path, archive: zipfile.ZipFile) -> None:
    for name in archive.namelist():
        member = PurePosixPath(name.replace("\\", "/"))
        if member.is_absolute() or ".." in member.parts or ":" in name:
            raise ValueError(f"{path} names {name!r}, a file outside the archive")


def inner_folder(root: Path) -> Path:
    """The one folder in `root` if there is nothing else, but for what macOS adds."""
    entries = [entry for entry in root.iterdir() if entry.name not in ("__MACOSX", ".DS_Store")]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else root
