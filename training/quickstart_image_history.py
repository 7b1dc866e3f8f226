"""What a run of `noria quickstart-image` has measured, and how it is told."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class StageHistory:
    """One stage: what its training took, its `curve` of (seconds, loss), and what was measured of it."""

    finished: bool = False
    steps: int = 0
    seconds: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def effort(self) -> str:
        return f"{self.seconds:.0f} s, {self.steps:,} steps"


@dataclass
class ImageHistory:
    """Both stages of a run."""

    vqgan: StageHistory = field(default_factory=StageHistory)
    prior: StageHistory = field(default_factory=StageHistory)

    @classmethod
    def restore(cls, stored: dict[str, Any]) -> "ImageHistory":
        """What `asdict` made of a history."""
        return cls(**{name: StageHistory(**stage) for name, stage in stored.items()})

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def reconstruction(self, pictures: int, codes: int) -> str:
        """How well pictures come back from their codes, and how many codes that took."""
        found = self.vqgan.measures
        rows = [
            ("PSNR", f"{found['psnr']:.2f} dB"),
            ("of the mean colour", f"{found['one_color_psnr']:.2f} dB"),
            ("codes in use", f"{found['codebook_usage'] * codes:.0f} of {codes}, by the training pictures"),
            ("their perplexity", f"{found['codebook_perplexity']:.0f}"),
            ("training", self.vqgan.effort),
        ]
        return table(f"first stage: reconstruction of {pictures} held-out pictures", rows)

    def losses(self) -> str:
        """The prior's losses beside the baseline."""
        found = self.prior.measures
        rows = [
            ("unigram baseline", f"{found['unigram']:.3f}"),
            ("before training", f"{found['before']:.3f}"),
            ("after training", f"{found['after']:.3f}"),
            ("below the baseline", f"{found['unigram'] - found['after']:.3f}"),
            ("training", self.prior.effort),
        ]
        return table("second stage: held-out loss of the prior, nats per code", rows)


def table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A title over indented lines of name and value."""
    return "\n".join([title, *(f"  {name:<20}{value}" for name, value in rows)])
