"""What shapes a run of `noria quickstart-image`."""

from dataclasses import dataclass

from .budget import Budget

# The pictures are worth more of the time than their order: what the first stage blurs, no prior makes sharp.
FIRST_STAGE = 0.65
PATCH, SIDE = 4, 32


@dataclass(frozen=True)
class ImageSettings:
    """Everything that shapes a run; an interrupted run goes on with the settings it began with.

    `seconds` are those of both stages together; `steps` are those of each.
    """

    architecture: str = "vqgan"
    prior: str = "linear_transformer"
    seconds: float = 300.0
    steps: int | None = None
    seed: int = 0
    codes: int = 512
    hidden_size: int = 16
    batch: int = 16
    learning_rate: float = 3e-3
    prior_hidden_size: int = 192
    prior_layers: int = 3
    prior_batch: int = 16
    prior_learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for stage in ("vqgan", "prior"):
            self.budget(stage)
        if self.codes < 2:
            raise ValueError(f"--codes must be at least 2, got {self.codes}")
        for name, field in self.__dataclass_fields__.items():
            if field.type in (int, float) and name != "seed" and not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be greater than 0, got {getattr(self, name)}")

    def budget(self, stage: str, elapsed: float = 0.0) -> Budget:
        """What one of the stages, "vqgan" or "prior", may spend."""
        share = FIRST_STAGE if stage == "vqgan" else 1 - FIRST_STAGE
        return Budget(self.seconds * share, self.steps, elapsed=elapsed)
