"""What taming's constructors were given: by the caller, by the yaml files of a run, by what Lightning stored.

A configuration there names a class as `target` and its arguments as `params`, some of which are configurations again.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .settings import Settings
from .symbols import mapping, plain

MAX_DEPTH = 32
LATENT = "hyper_parameters"
PLAIN = str | int | float | bool | None


class Loader(yaml.SafeLoader):
    """Reads plain values only, and 1e-8 as a number, which YAML 1.1 takes for text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class Constructor(Settings):
    """The arguments of one class, with those of its parts as further ones; `where` stands before their names."""

    def __init__(self, given: Any, from_file: Any, where: str = "") -> None:
        super().__init__(arguments_of(given), arguments_of(from_file))
        self.where = where
        self.parts: list[Constructor] = []

    @property
    def target(self) -> str:
        """The name of the class, without its modules; "" where none is told."""
        return str(self.stated("target")[0] or "").rpartition(".")[2]

    def part(self, name: str) -> "Constructor":
        """The arguments of what the argument `name` configures."""
        made = Constructor(self.given.get(name), self.from_file.get(name), f"{self.where}{name}.")
        self.parts.append(made)
        return made

    def check_names(self, known: Collection[str]) -> None:
        """Marks what the caller gave and the class does not take as wrong."""
        for name in self.given:
            if name not in known:
                self.wrong.append(f"{name} is no argument there: it takes {', '.join(sorted(known))}")

    def finish(self) -> None:
        """Gathers what the parts recorded, and raises one ValueError for all that is missing or wrong."""
        for part in self.parts:
            self.gather(part)
        self.parts = []
        super().finish()

    def gather(self, part: "Constructor") -> None:
        for inner in part.parts:
            self.gather(inner)
        self.record |= {f"{part.where}{name}": entry for name, entry in part.record.items()}
        self.missing += [f"{part.where}{name}" for name in part.missing]
        self.wrong += [f"{part.where}{problem}" for problem in part.wrong]


def arguments_of(value: Any) -> dict[str, Any]:
    """The arguments in one mapping, `target` among them; a text such as "__is_first_stage__" is a target."""
    if isinstance(value, str):
        return {"target": value}
    if not isinstance(value, Mapping):
        return {}
    if isinstance(value.get("model"), Mapping):
        rest = {key: item for key, item in value.items() if key != "model"}
        return arguments_of(value["model"]) | rest
    params = value.get("params")
    if not isinstance(params, Mapping):
        return dict(value)
    return dict(params) | {key: item for key, item in value.items() if key not in ("params", "base_learning_rate")}


def nested(arguments: Mapping[str, Any], place: str, names: Collection[str]) -> dict[str, Any]:
    """`arguments` with those called `names`, which belong to the part `place`, put there."""
    flat = arguments_of(arguments)
    inner = {name: flat.pop(name) for name in list(flat) if name in names}
    if inner:
        flat[place] = arguments_of(flat.get(place)) | inner
    return flat


def stored_arguments(companions: Mapping[str, Path], content: Any) -> dict[str, Any]:
    """What the files beside the checkpoint say, the later over the earlier; else what Lightning stored in it."""
    merged: dict[str, Any] = {}
    for path in companions.values():
        model = read_yaml(path).get("model")
        if isinstance(model, Mapping):
            merged = overlaid(merged, model)
    if merged:
        return merged
    latent = mapping((mapping(content) or {}).get(LATENT))
    return readable(latent, 0) if latent else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a yaml file. ValueError where it is damaged or holds objects of Python."""
    try:
        content = yaml.load(path.read_text("utf-8"), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no plain yaml: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Both mappings as one, mappings inside them too; elsewhere `above` is right."""
    made = dict(below)
    for key, value in above.items():
        inner = made.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping) and depth < MAX_DEPTH:
            value = overlaid(inner, value, depth + 1)
        made[key] = value
    return made


def readable(value: Any, depth: int) -> Any:
    """omegaconf's nodes as the plain values that they hold; None for objects of other classes."""
    value = plain(value)
    if depth > MAX_DEPTH:
        raise ValueError(f"{LATENT} of the checkpoint are nested too deeply")
    if isinstance(value, dict):
        return {key: readable(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [readable(item, depth + 1) for item in value]
    return value if isinstance(value, PLAIN) else None
