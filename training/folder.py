"""The folder that a run leaves behind: never half written, never somebody else's."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RECORD = "run.json"


def read_record(output: Path) -> dict[str, Any] | None:
    """What the run that wrote `output` noted about itself, or None where no run did.

    Raises ValueError where the note is there and cannot be read.
    """
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
        return {"settings": dict(record["settings"]), "finished": bool(record["finished"]), **record}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{output / RECORD} is damaged ({error}); remove {output} or choose another --output"
        ) from None


def write_record(folder: Path, settings: dict[str, Any], finished: bool, history: dict[str, Any]) -> None:
    """Notes what a later run must know to go on, or to tell that the folder is its own to overwrite."""
    try:
        installed = version("noria")
    except PackageNotFoundError:
        installed = "not installed"
    record = {"noria": installed, "settings": settings, "finished": finished, "history": history}
    (folder / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def require_replaceable(output: Path, architecture: str) -> None:
    """Raises ValueError unless `output` is free, empty, or left by a run of the same architecture."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"--output {output} is a file, not a folder")
    record = read_record(output)
    if record is None and any(output.iterdir()):
        raise ValueError(f"{output} was not written by noria quickstart and is left alone; choose another --output")
    other = record and record["settings"].get("architecture")
    if other and other != architecture:
        raise ValueError(f"{output} holds a model of {other}, not of {architecture}; choose another --output")


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`, on the same file system; whatever is left of it at the end is removed.

    Raises ValueError where the parent does not exist or cannot be written to.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise ValueError(f"cannot write beside --output {output}: {error.strerror}") from None
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, output: Path) -> None:
    """Puts the finished `folder` in the place of `output`; the old content is gone only once the new one is there."""
    if not output.exists():
        folder.rename(output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}-old-", dir=output.parent))
    output.rename(old / output.name)
    try:
        folder.rename(output)
    except OSError:
        (old / output.name).rename(output)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
