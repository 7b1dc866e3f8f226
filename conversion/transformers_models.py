"""Models that transformers has itself, each with a format of its own, told apart by config.json's `model_type`."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from .checkpoint import Checkpoint
from .format import Format, Plan
from .rules import Rule
from .transformers_mamba import MAMBA_FOLDER
from .transformers_mamba2 import MAMBA2_FOLDER
from .transformers_roformer import ROFORMER
from .transformers_rwkv import RWKV_FOLDER

CONFIG = "config.json"
MODELS: dict[str, Format] = {"mamba": MAMBA_FOLDER, "mamba2": MAMBA2_FOLDER, "roformer": ROFORMER, "rwkv": RWKV_FOLDER}


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    """The plan of the model's own format, which is also told which arguments are its own."""
    stated = checkpoint.read_json(CONFIG).get("model_type")
    model_type = arguments.get("model_type", stated)
    if model_type is None:
        raise ValueError(f"there is no {CONFIG} that tells the model's type: say model_type=... ({', '.join(MODELS)})")
    if model_type not in MODELS:
        raise ValueError(
            f"model_type is {model_type!r}; transformers' models that can be converted: {', '.join(MODELS)}"
        )
    return MODELS[model_type].plan(checkpoint, *MODELS[model_type].split({**arguments, **fields}))


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    family = next(model for model in MODELS.values() if isinstance(config, model.config_classes))
    return family.rules(config)


TRANSFORMERS = Format(
    name="transformers",
    upstream="transformers' configuration",
    arguments=frozenset(name for model in MODELS.values() for name in model.arguments),
    config_classes=tuple({known: None for model in MODELS.values() for known in model.config_classes}),
    plan=plan,
    rules=rules,
    patterns=tuple(dict.fromkeys(name for model in MODELS.values() for name in model.patterns)),
    companions=tuple(dict.fromkeys(name for model in MODELS.values() for name in model.companions)),
)
