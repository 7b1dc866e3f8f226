"""What an upstream project brings: how its checkpoints are planned, and the table of rules for their tensors."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from .checkpoint import Checkpoint
from .rules import Rule
from .source import PATTERNS

DERIVED_FIELDS = {"model_type", "transformers_version", "architectures", "dtype"}


@dataclass
class Plan:
    """The model that a checkpoint becomes. `prefix` stands before all its tensor names and before no rule's.

    `generation` are fields of the generation config of a model that writes; `write_tokenizer` writes the tokenizer
    into the target, where the source has one, `write_beside` what else belongs there. `rules` are other rules than the
    format has for the configuration, where the caller may choose between tensors; the format's undo them too.
    """

    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    prefix: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    write_tokenizer: Callable[[Path], Any] | None = None
    write_beside: Callable[[Path], Any] | None = None
    rules: Sequence[Rule] | None = None


@dataclass(frozen=True)
class Format:
    """One upstream project.

    `plan(checkpoint, upstream arguments, noria fields)` reads the configuration off the checkpoint; `rules(config)` is
    the table for that configuration, for both directions. `arguments` are those of the upstream's constructor, and
    `config_classes` the configurations that a plan may have. `state_keys` are the keys under which a file may keep its
    state dict, `patterns` the names of its files in a folder, the likeliest first, `companions` those of the files
    near them that describe the model (they may be patterns, lead to other folders, and name the file's `{stem}`).
    """

    name: str
    upstream: str
    arguments: Collection[str]
    config_classes: tuple[type[PreTrainedConfig], ...]
    plan: Callable[[Checkpoint, Mapping[str, Any], Mapping[str, Any]], Plan]
    rules: Callable[[PreTrainedConfig], Sequence[Rule]]
    state_keys: Sequence[str] = ("model", "state_dict")
    patterns: Sequence[str] = PATTERNS
    companions: Sequence[str] = ()

    def split(self, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parts a caller's config into the upstream's arguments and noria's fields; ValueError for any other key."""
        fields = {name for known in self.config_classes for name in known().to_dict()} - DERIVED_FIELDS
        unknown = [key for key in config if key not in self.arguments and key not in fields]
        if unknown:
            names = [*self.arguments, *fields]
            near = [name for key in unknown for name in difflib.get_close_matches(str(key), names, 1)]
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ValueError(
                f"config names {', '.join(map(repr, unknown))}, which neither {self.upstream} nor "
                f"{' or '.join(known.__name__ for known in self.config_classes)} has{hint}"
            )
        upstream = {key: value for key, value in config.items() if key in self.arguments}
        return upstream, {key: value for key, value in config.items() if key not in self.arguments}


def common_prefix(names: Collection[str], anchor: str) -> str:
    """What stands before `anchor` in the first of `names` that ends with it; "" where none does."""
    return next((name[: -len(anchor)] for name in names if name.endswith(anchor)), "")


def layer_count(names: Collection[str], stem: str) -> int:
    """One more than the largest number that follows `stem` in `names`."""
    rests = (name[len(stem) :].partition(".")[0] for name in names if name.startswith(stem))
    return max((int(number) + 1 for number in rests if number.isdigit()), default=0)
