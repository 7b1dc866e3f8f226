"""Renames and reshapes a checkpoint's tensors by a table that is strict both ways, and undoes it by that table."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .raw_bytes import same_bytes


def identity(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Rule:
    """One line of a table: the tensors `source` of the upstream become the tensors `target` of ours.

    `{}` stands for a number (of a layer), the same on both sides, and `*` in a source for anything. `transform` takes
    as many tensors as there are sources and returns one, or a tuple where there are several targets; `inverse` undoes
    it bit by bit. With a `reason`, always given where there is no target, the tensor is kept beside the model as well,
    and export writes that one; `copy_of` names the one that it repeats, and that it stands for where a file holds only
    the copy.
    """

    source: str | tuple[str, ...]
    target: str | tuple[str, ...] = ()
    transform: Callable[..., Any] = identity
    inverse: Callable[..., Any] = identity
    reason: str = ""
    copy_of: str = ""

    @cached_property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    @cached_property
    def targets(self) -> tuple[str, ...]:
        return (self.target,) if isinstance(self.target, str) else self.target

    @cached_property
    def source_patterns(self) -> tuple[re.Pattern[str], ...]:
        return tuple(map(pattern, self.sources))

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The target's tensors; ValueError where `inverse` does not give the source back bit by bit."""
        if self.transform is identity:
            return tuple(tensors)
        made = as_tuple(self.transform(*tensors))
        if self.reason:
            return made
        back = self.backward(made)
        if len(back) != len(tensors) or not all(map(same_bytes, back, tensors)):
            raise ValueError(f"the rule for {self.sources[0]} cannot be undone exactly")
        return made

    def backward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return as_tuple(self.inverse(*tensors))


@dataclass
class Applied:
    """What `apply` made: targets by name, names without a target with the reason, and the record of each rule."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    record: list[dict[str, Any]] = field(default_factory=list)


def as_tuple(made: Any) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def pattern(name: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(re.escape(part).replace(r"\*", "(.*)") for part in name.split("{}")))


def enumerate_names(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def apply(rules: Sequence[Rule], tensors: Mapping[str, Tensor]) -> Applied:
    """Applies the table to every tensor. ValueError names the tensors that no rule knows or that a rule lacks."""
    found: dict[tuple[Rule, tuple[str, ...]], dict[int, str]] = {}
    unknown = []
    for name in tensors:
        match = find(rules, name)
        if match is None:
            unknown.append(name)
        else:
            rule, place, numbers = original_of(rules, match, tensors)
            found.setdefault((rule, numbers), {})[place] = name
    if unknown:
        raise ValueError(f"no rule for {len(unknown)} tensors of the checkpoint: {enumerate_names(unknown)}")
    applied = Applied()
    for (rule, numbers), names in found.items():
        lacking = [source.format(*numbers) for place, source in enumerate(rule.sources) if place not in names]
        if lacking:
            raise ValueError(f"the checkpoint lacks {enumerate_names(lacking)}")
        use(rule, numbers, [names[place] for place in sorted(names)], tensors, applied)
    return applied


def find(rules: Sequence[Rule], name: str) -> tuple[Rule, int, tuple[str, ...]] | None:
    for rule in rules:
        for place, expression in enumerate(rule.source_patterns):
            if match := expression.fullmatch(name):
                return rule, place, match.groups()
    return None


def original_of(
    rules: Sequence[Rule], match: tuple[Rule, int, tuple[str, ...]], tensors: Mapping[str, Tensor]
) -> tuple[Rule, int, tuple[str, ...]]:
    """The match of the tensor that a copy stands for where the file lacks it; else the match itself."""
    original = match[0].copy_of.format(*match[2])
    return match if not original or original in tensors else find(rules, original) or match


def use(
    rule: Rule, numbers: tuple[str, ...], sources: Sequence[str], tensors: Mapping[str, Tensor], applied: Applied
) -> None:
    if rule.copy_of:
        original = rule.copy_of.format(*numbers)
        if original not in tensors or not same_bytes(tensors[sources[0]], tensors[original]):
            raise ValueError(f"{sources[0]} should repeat {original} ({rule.reason}), but differs from it")
    targets = [target.format(*numbers) for target in rule.targets]
    if targets:
        applied.tensors |= zip(targets, rule.forward([tensors[name] for name in sources]), strict=True)
    if rule.reason or not targets:
        applied.kept |= dict.fromkeys(sources, rule.reason)
    applied.record.append({"rule": rule.sources[0], "source": list(sources), "target": targets})


def undo(
    rules: Sequence[Rule], record: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The upstream's tensors that `apply` recorded, made from ours. ValueError names what is missing."""
    table = {rule.sources[0]: rule for rule in rules}
    missing = [name for entry in record for name in entry["target"] if name not in tensors]
    missing += [entry["rule"] for entry in record if entry["rule"] not in table]
    if missing:
        raise ValueError(f"the model lacks {enumerate_names(missing)}")
    made: dict[str, Tensor] = {}
    for entry in record:
        if entry["target"] and not table[entry["rule"]].reason:
            back = table[entry["rule"]].backward([tensors[name] for name in entry["target"]])
            made |= zip(entry["source"], back, strict=True)
    for entry in record:
        rule = table[entry["rule"]]
        if rule.copy_of:
            numbers = rule.source_patterns[0].fullmatch(entry["source"][0])
            original = rule.copy_of.format(*(numbers.groups() if numbers else ()))
            if original in made:
                made[entry["source"][0]] = made[original]
    return made


def check(rules: Sequence[Rule], applied: Applied, expected: Mapping[str, torch.Size]) -> None:
    """ValueError where the targets are not exactly the model's tensors, each of the model's shape."""
    missing = [upstream_name(rules, name) for name in expected if name not in applied.tensors]
    if missing:
        raise ValueError(f"the checkpoint lacks {len(missing)} tensors: {enumerate_names(missing)}")
    extra = [name for name in applied.tensors if name not in expected]
    if extra:
        raise ValueError(f"the model has no place for {len(extra)} tensors: {enumerate_names(extra)}")
    wrong = [
        f"{upstream_name(rules, name)} gives {tuple(tensor.shape)}, the model wants {tuple(expected[name])}"
        for name, tensor in applied.tensors.items()
        if tensor.shape != expected[name]
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors have a wrong shape: {enumerate_names(wrong, 3)}")


def upstream_name(rules: Sequence[Rule], target: str) -> str:
    for rule in rules:
        for name in rule.targets:
            if match := pattern(name).fullmatch(target):
                return rule.sources[0].format(*match.groups())
    return target
