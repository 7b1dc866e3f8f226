"""Sampling of codes with transformers' generate(): the ids that are codes, and one seed for each image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import LongTensor, Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# What generate() makes of its arguments while sampling, in its order, each with the value that changes nothing.
WARPERS = {
    "temperature": (TemperatureLogitsWarper, 1.0),
    "top_k": (TopKLogitsWarper, 0),
    "top_p": (TopPLogitsWarper, 1.0),
    "min_p": (MinPLogitsWarper, 0.0),
    "typical_p": (TypicalLogitsWarper, 1.0),
    "epsilon_cutoff": (EpsilonLogitsWarper, 0.0),
}
UNSEEDED = ("eta_cutoff", "top_h")
# How many codes there are, and where they end, is the map's affair.
DECIDED = (
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "eos_token_id",
    "return_dict_in_generate",
    "inputs",
    "input_ids",
    "attention_mask",
)


class OnlyCodes(LogitsProcessor):
    """Leaves the first `count` ids, which are codes; the rest are ids of conditions."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        return scores.index_fill(-1, torch.arange(self.count, scores.shape[-1], device=scores.device), -torch.inf)


class SeededChoice(LogitsProcessor):
    """Draws each row's next id with that row's own generator, and leaves nothing else.

    The largest of `log p - log e`, e from the exponential distribution, is distributed as p (Gumbel-max). The numbers
    are drawn on the processor, so that they are the same on every device and in every batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        if scores.shape[0] != len(self.generators):
            raise ValueError(f"{len(self.generators)} seeds for {scores.shape[0]} rows: give one for each image.")
        waiting = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=g) for g in self.generators])
        chosen = (scores - waiting.log().to(scores)).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


def list_seeds(seed: int | Sequence[int], batch: int) -> list[int]:
    """One seed for each image; of a single number, this and those after it. Raises ValueError for another count."""
    seeds = [seed + i for i in range(batch)] if isinstance(seed, int) else [int(one) for one in seed]
    if len(seeds) != batch:
        raise ValueError(f"{len(seeds)} seeds for {batch} images: give one for each, or a single number.")
    return seeds


def sampling_arguments(
    arguments: dict[str, Any], defaults: GenerationConfig, count: int | None, seeds: Sequence[int] | None
) -> dict[str, Any]:
    """What generate() is to be called with, from what the caller gave it.

    count: how many ids are codes, where only these may be written. Without `top_k` all ids are candidates: generate()
    itself would take the best 50. Raises ValueError for arguments that the map decides, and for seeds of a search.
    """
    if (given := arguments.pop("generation_config", None)) is not None:
        arguments = {**given.to_diff_dict(), **arguments}
        arguments.pop("transformers_version", None)
    for name in DECIDED:
        if arguments.get(name):
            raise ValueError(f"`{name}` ({arguments[name]!r}) cannot be chosen here: a map of codes has its own size.")
        arguments.pop(name, None)
    processors = LogitsProcessorList([] if count is None else [OnlyCodes(count)])
    processors += arguments.pop("logits_processor", None) or []
    if seeds is not None:
        arguments, drawing = seeded(arguments, defaults, seeds)
        processors += drawing
    elif (arguments.get("do_sample") or defaults.do_sample) and arguments.get("top_k", defaults.top_k) is None:
        arguments["top_k"] = 0
    return {**arguments, "logits_processor": processors}


def seeded(
    arguments: dict[str, Any], defaults: GenerationConfig, seeds: Sequence[int]
) -> tuple[dict[str, Any], LogitsProcessorList]:
    """Arguments of a greedy search, and the processors that make it sample with seeds as the arguments said."""
    if arguments.get("do_sample") is False:
        raise ValueError("`seed` belongs to sampling: leave `do_sample=False` out, or the seed.")
    if (arguments.get("num_beams") or 1) > 1:
        raise ValueError(f"`seed` belongs to sampling, not to a search with {arguments['num_beams']} beams.")
    for name in UNSEEDED:
        if arguments.get(name):
            raise ValueError(f"`{name}` ({arguments[name]}) is not known to sampling with a `seed`.")
    arguments, processors = {**arguments, "do_sample": False}, LogitsProcessorList()
    for name, (warper, off) in WARPERS.items():
        value = arguments.pop(name, None)
        value = getattr(defaults, name, None) if value is None else value
        if value is not None and value != off:
            processors.append(warper(value))
    processors.append(SeededChoice(seeds))
    return arguments, processors
