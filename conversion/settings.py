"""What the upstream's constructor was given: by the file, by the caller, or as the tensors show; never guessed."""

from collections.abc import Mapping
from typing import Any

MISSING = object()


class Settings:
    """Answers for the upstream's arguments; the caller's values come before the file's.

    `record` tells for each argument that was asked for its value and where it came from. `finish` raises one
    ValueError that names everything missing or contradictory.
    """

    def __init__(self, given: Mapping[str, Any], from_file: Mapping[str, Any]) -> None:
        self.given, self.from_file = given, from_file
        self.record: dict[str, dict[str, Any]] = {}
        self.missing: list[str] = []
        self.wrong: list[str] = []

    def stated(self, name: str) -> tuple[Any, str]:
        """The value that was stated and by whom ("config" or "file"); (None, "") where it was not."""
        for values, origin in ((self.given, "config"), (self.from_file, "file")):
            if values.get(name) is not None:
                return values[name], origin
        return None, ""

    def take(self, name: str, tensors: Any = None, default: Any = MISSING) -> Any:
        """The argument `name`. `tensors` is what the tensors say of it, `default` the upstream's own default."""
        value, origin = self.stated(name)
        if origin and tensors is not None and value != tensors:
            self.wrong.append(f"{name} is {value!r} in the {origin}, but the tensors say {tensors!r}")
        if not origin:
            value, origin = (tensors, "tensors") if tensors is not None else (default, "default")
        if value is MISSING:
            self.missing.append(name)
            return None
        self.record[name] = {"value": value, "from": origin}
        return value

    def choose(self, name: str, choices: Mapping[Any, Any], default: Any = MISSING) -> Any:
        """What `choices` makes of the argument `name`; a value that it lacks is wrong."""
        value = self.take(name, default=default)
        if value is not None and value not in choices:
            self.wrong.append(f"{name} is {value!r}, not one of {sorted(map(repr, choices))}")
        return choices.get(value)

    def refuse(self, name: str, accepted: Any, reason: str) -> None:
        """An option of the upstream that our model lacks: anything but `accepted` is wrong, for this reason."""
        if self.take(name, default=accepted) != accepted:
            self.wrong.append(f"{name}={self.record[name]['value']!r} cannot be converted: {reason}")

    def finish(self) -> None:
        problems = list(self.wrong)
        if self.missing:
            problems.append(
                "the checkpoint does not say "
                + ", ".join(self.missing)
                + ": give the upstream's own arguments as config={...} (--config key=value)"
            )
        if problems:
            raise ValueError("; ".join(problems))
