"""noria.convert: an upstream checkpoint becomes a folder that `from_pretrained` loads."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import GenerationConfig

from .archive import unpacked
from .checkpoint import Checkpoint, read_checkpoint
from .format import Format, Plan
from .formats import find_format
from .raw_bytes import write_safetensors
from .rules import Applied, apply, check
from .source import checkpoint_files, local
from .target import atomic_folder, check_target

logger = logging.getLogger(__name__)

WEIGHTS, EXTRAS, RECORD = "model.safetensors", "upstream_extras.safetensors", "conversion.json"
UPSTREAM = "upstream"


def convert(
    format: str,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Converts the checkpoint `source` (file, folder, zip archive or Hub id) of the upstream `format` into a folder.

    `config` holds arguments of the upstream's constructor where the checkpoint does not carry them, and fields of the
    noria configuration; both override what the checkpoint says. Tensors keep their dtypes. `conversion.json` in the
    target records the source's hashes, the rule for every tensor, what was dropped and why, and what was refused;
    `upstream_extras.safetensors` keeps the tensors that the model has no use for, and the folder `upstream` the
    source's own configuration and vocabulary, so that `export` can write them.

    Returns the target. Raises ValueError for an unknown format, an unreadable file, unknown or missing tensors, wrong
    shapes and missing or contradictory settings; FileNotFoundError, FileExistsError (the target is not empty) or
    another OSError for paths. Nothing is left at the target then.
    """
    family, folder = find_format(format), Path(target)
    check_target(folder)
    upstream, fields = family.split(config or {})
    path = local(source)
    with unpacked(path, beside=folder) as place:
        return convert_files(family, place if place != path else source, place, folder, upstream, fields)


def convert_files(
    family: Format,
    source: str | os.PathLike[str],
    path: Path,
    folder: Path,
    upstream: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> Path:
    """`convert`, from the files at `path`, which `source` names."""
    files = checkpoint_files(path, family.patterns)
    checkpoint = read_checkpoint(files, family.state_keys)
    checkpoint.name = source_name(source, files[0])
    checkpoint.add_companions(files[0], family.companions)
    try:
        plan = family.plan(checkpoint, upstream, fields)
        rules = family.rules(plan.config) if plan.rules is None else plan.rules
        applied = apply(rules, without_prefix(checkpoint.state, plan.prefix))
        check(rules, applied, expected_shapes(plan))
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(f"{files[0]}: {' '.join(str(error).split())}") from error
    plan.config.architectures = [plan.model_class.__name__]
    plan.config.dtype = main_dtype(applied.tensors)
    logger.info("writing %s: %s, %d tensors", folder, plan.model_class.__name__, len(applied.tensors))
    with atomic_folder(folder) as part:
        write_model(part, plan, applied, checkpoint)
        record = make_record(family.name, plan, applied, checkpoint, {**upstream, **fields})
        (part / RECORD).write_text(json.dumps(record, indent=1, default=str) + "\n", "utf-8")
    return folder


def source_name(source: str | os.PathLike[str], file: Path) -> str:
    """What the source is called: the last part of a Hub id, else the folder that holds the file."""
    if Path(source).exists() or Path(source).parent.absolute() == file.parent.absolute():
        return file.parent.absolute().name
    return str(source).rpartition("/")[2]


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    outside = [name for name in state if not name.startswith(prefix)]
    if outside:
        raise ValueError(f"the tensors {', '.join(outside[:6])} stand outside {prefix!r}, where the model is")
    return {name[len(prefix) :]: tensor for name, tensor in state.items()}


def expected_shapes(plan: Plan) -> dict[str, torch.Size]:
    """The names and shapes of the model's tensors, tied ones once."""
    with torch.device("meta"):
        model = plan.model_class(plan.config)
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    return {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}


def main_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The floating dtype of most elements."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def write_model(part: Path, plan: Plan, applied: Applied, checkpoint: Checkpoint) -> None:
    write_safetensors(part / WEIGHTS, applied.tensors, {"format": "pt"})
    plan.config.save_pretrained(part)
    if plan.model_class.can_generate():
        generation = GenerationConfig.from_model_config(plan.config)
        generation.update(**plan.generation)
        generation.save_pretrained(part)
    if plan.write_tokenizer is not None:
        plan.write_tokenizer(part)
    if plan.write_beside is not None:
        plan.write_beside(part)
    if checkpoint.companions:
        (part / UPSTREAM).mkdir()
    for name, file in checkpoint.companions.items():
        shutil.copyfile(file, part / UPSTREAM / name)
    extras = {name: checkpoint.state[plan.prefix + name] for name in applied.kept}
    if extras or checkpoint.others:
        named = {plan.prefix + name: tensor for name, tensor in extras.items()}
        write_safetensors(part / EXTRAS, named | checkpoint.others)


def make_record(
    format: str, plan: Plan, applied: Applied, checkpoint: Checkpoint, config: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "noria_version": version("noria"),
        "format": format,
        "model_class": plan.model_class.__name__,
        "config": dict(config),
        "settings": dict(plan.settings),
        "prefix": plan.prefix,
        "rules": applied.record,
        "extras": {plan.prefix + name: reason for name, reason in applied.kept.items()}
        | dict.fromkeys(checkpoint.others, "outside the state dict"),
        "dropped": checkpoint.dropped,
        "refused": sorted(checkpoint.refused),
        "files": checkpoint.files,
    }
