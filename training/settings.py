"""What shapes a quickstart run, and how an interrupted one is found again."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from .budget import Budget
from .folder import read_record, require_replaceable

PRECISIONS = ("float32", "bfloat16")


def fast_precision() -> str:
    """bfloat16 where the processor multiplies it natively (Linux tells), which trains 1.3 to 1.5 times as fast here.

    Everywhere else bfloat16 is emulated and slower than float32.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return "float32"
    return "bfloat16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(flags) else "float32"


@dataclass(frozen=True)
class Settings:
    """Everything that shapes a run; an interrupted run goes on with the settings it began with."""

    architecture: str = "retnet"
    seconds: float = 120.0
    steps: int | None = None
    seed: int = 0
    hidden_size: int = 192
    layers: int = 3
    length: int = 128
    batch: int = 4
    learning_rate: float = 2e-3
    precision: str = field(default_factory=fast_precision)

    def __post_init__(self) -> None:
        Budget(self.seconds, self.steps)
        for name in ("hidden_size", "layers", "length", "batch", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be greater than 0, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"--precision must be {' or '.join(PRECISIONS)}, got {self.precision!r}")
        if self.length < 2:
            raise ValueError("--length must be at least 2: a row of one token has nothing to predict")


Kind = TypeVar("Kind")


def plan(
    output: Path, given: dict[str, Any], resume: bool, kind: type[Kind] = Settings
) -> tuple[Kind, dict[str, Any] | None]:
    """The settings of this run, and what the run that it goes on from has noted.

    kind: a dataclass as Settings, with `architecture`, `seconds` and `steps` among its fields.

    Raises ValueError where `output` may not be written, where there is nothing to resume, where another command
    began the run, and where `given` does not fit it.
    """
    if Path.cwd().is_relative_to(output.resolve()):
        raise ValueError(
            f"--output {output} is the folder that you are in, or one around it; name a folder of its own"
        )
    if not resume:
        settings = kind(**given)
        require_replaceable(output, settings.architecture)
        return settings, None
    record = read_record(output)
    if record is None:
        raise ValueError(f"there is no run to resume in {output}; leave out --resume to start one")
    if record["finished"] or checkpoint_of(output) is None:
        raise ValueError(f"the run in {output} is finished; leave out --resume to start a new one")
    if unknown := record["settings"].keys() - kind.__dataclass_fields__.keys():
        raise ValueError(f"the run in {output} was begun by another command: it has {', '.join(sorted(unknown))}")
    stored = kind(**record["settings"])
    for name, value in given.items():
        if name not in ("seconds", "steps") and value != (begun := getattr(stored, name)):
            raise ValueError(f"--{name.replace('_', '-')} {value} does not fit the run in {output}, which has {begun}")
    return replace(stored, **given), record


def checkpoint_of(output: Path) -> Path | None:
    """The Trainer's checkpoint that an interrupted run has left in its folder."""
    return next(iter(sorted(output.glob("checkpoint-*"))), None)
