"""CompVis/taming-transformers and the VQ models of latent-diffusion  ->  NoriaVQGANModel, or the second stage over it.

Read from Lightning's checkpoints, old ones with their callbacks and configurations in them too, and from bare state
dicts; with the yaml of the run where it lies near (configs/*-project.yaml, model.yaml, config.yaml). Without one the
tensors tell everything but the number of heads of a second stage and what its conditions are.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import is_vision_available

from ..configuration.vqgan import NoriaVQGANConfig
from ..configuration.vqgan_prior import NoriaVQGANPriorConfig
from ..image_processing.vqgan import CHANNELS, NoriaVQGANImageProcessor
from ..modeling.vqgan import NoriaVQGANModel
from ..modeling.vqgan_prior import NoriaVQGANPriorForImageGeneration
from .checkpoint import Checkpoint
from .format import Format, Plan, common_prefix
from .taming_discriminator import LOSS, discriminator_writer
from .taming_prior import ARGUMENTS as PRIOR_ARGUMENTS
from .taming_prior import GPT, prior_fields
from .taming_rules import CONDITION, EMA, FIRST, FIRST_STAGE_OF_MEANS, rules
from .taming_settings import Constructor, nested, stored_arguments
from .taming_vqgan import ARGUMENTS as VQGAN_ARGUMENTS
from .taming_vqgan import AUTOENCODER, vqgan_fields

logger = logging.getLogger(__name__)

ANCHOR, PRIOR_ANCHOR = "encoder.conv_in.weight", "transformer.tok_emb.weight"
# What the caller may choose: whether the losses' networks come along, and which of two sets of weights is the model's.
CHOICES = {"loss": ("keep", "drop"), "weights": ("model", "ema")}


class Source(NamedTuple):
    """What a stage is made of: tensors by their names behind `prefix`, the upstream's arguments that the caller has
    `given` and that are `stored` beside the tensors, noria's fields, and which of two sets of weights is wanted.
    """

    tensors: Mapping[str, Tensor]
    prefix: str
    given: Mapping[str, Any]
    stored: Mapping[str, Any]
    fields: Mapping[str, Any]
    weights: str


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    given = dict(arguments)
    chosen = {name: choose(name, given.pop(name, values[0])) for name, values in CHOICES.items()}
    second = any(name.endswith(PRIOR_ANCHOR) for name in checkpoint.state)
    prefix = common_prefix(checkpoint.state, PRIOR_ANCHOR if second else ANCHOR)
    if prefix.endswith(FIRST):
        raise ValueError(
            f"it is no second stage of taming-transformers: there is a {FIRST[:-1]} but no {PRIOR_ANCHOR}; a model of "
            "latent diffusion is not converted as a whole"
        )
    if chosen["loss"] == "drop":
        parts = tuple(f"{prefix}{part}{LOSS}" for part in ("", FIRST, CONDITION))
        for name in [name for name in checkpoint.state if name.startswith(parts)]:
            checkpoint.drop(name, "loss=drop")
    config_class = NoriaVQGANPriorConfig if second else NoriaVQGANConfig
    own, fields = own_fields(given, fields, config_class)
    stored = stored_arguments(checkpoint.companions, checkpoint.content)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.state.items()}
    make = second_stage if second else first_stage
    made = make(Source(tensors, prefix, own, stored, fields, chosen["weights"]))
    made.settings = {**made.settings, **{name: {"value": value, "from": "config"} for name, value in chosen.items()}}
    return made


def choose(name: str, value: Any) -> Any:
    if value not in CHOICES[name]:
        raise ValueError(f"{name} is {value!r}, not one of {', '.join(map(repr, CHOICES[name]))}")
    return value


def own_fields(
    given: Mapping[str, Any], fields: Mapping[str, Any], config_class: type[PreTrainedConfig]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the stage, and fields of its configuration: some names are one in this stage, one in the other."""
    known = config_class().to_dict().keys()
    arguments = (*PRIOR_ARGUMENTS, *GPT) if config_class is NoriaVQGANPriorConfig else (*VQGAN_ARGUMENTS, *AUTOENCODER)
    others = {name: value for name, value in given.items() if name not in (*arguments, "model", "params")}
    foreign = [name for name in (*others, *fields) if name not in known]
    if foreign:
        raise ValueError(f"config names {', '.join(map(repr, foreign))}, which this stage does not have")
    return {name: value for name, value in given.items() if name not in others}, {**fields, **others}


def first_stage(source: Source) -> Plan:
    settings = Constructor(nested(source.given, "ddconfig", AUTOENCODER), source.stored)
    config = vqgan_fields(settings, source.tensors)
    means = source.weights == "ema"
    if means and not any(name.startswith(EMA) for name in source.tensors):
        settings.wrong.append(f"weights is 'ema', but no tensor's name begins with {EMA}")
    writer = discriminator_writer(source.tensors, settings.part("lossconfig"))
    settings.finish()
    noria = NoriaVQGANConfig(**{**config, **source.fields})
    return Plan(
        noria,
        NoriaVQGANModel,
        source.prefix,
        settings.record,
        write_beside=partial(write_beside, noria, writer),
        rules=FIRST_STAGE_OF_MEANS if means else None,
    )


def second_stage(source: Source) -> Plan:
    settings = Constructor(nested(source.given, "transformer_config", GPT), source.stored)
    config = prior_fields(settings, source.tensors)
    if source.weights == "ema":
        settings.wrong.append("weights is 'ema', but only a first stage has running means")
    settings.finish()
    noria = NoriaVQGANPriorConfig(**{**config, **source.fields})
    return Plan(
        noria,
        NoriaVQGANPriorForImageGeneration,
        source.prefix,
        settings.record,
        write_beside=partial(write_beside, noria, None),
    )


def write_beside(config: PreTrainedConfig, discriminator: Callable[[Path], None] | None, folder: Path) -> None:
    """The image processor that fits the model, where its channels are those of pictures, and the discriminator."""
    if discriminator is not None:
        discriminator(folder)
    first = getattr(config, "vqgan_config", None) or config
    if not is_vision_available():
        logger.warning("%s has no image processor: Pillow is not installed (pip install 'noria[image]')", folder)
    elif first.task == "segmentation" or first.num_channels in CHANNELS:
        NoriaVQGANImageProcessor.for_model(config).save_pretrained(folder)


TAMING = Format(
    name="taming",
    upstream="taming-transformers",
    arguments=frozenset((*VQGAN_ARGUMENTS, *AUTOENCODER, *PRIOR_ARGUMENTS, *GPT, "model", "params", *CHOICES)),
    config_classes=(NoriaVQGANConfig, NoriaVQGANPriorConfig),
    plan=plan,
    rules=rules,
    state_keys=("state_dict", "model"),
    patterns=(
        *(f"{folder}{name}" for name in ("last.ckpt", "*.ckpt") for folder in ("", "checkpoints/", "ckpts/")),
        "*.pt",
        "*.pth",
        "*.bin",
        "*.safetensors",
    ),
    # Of several yaml files, which are laid one over the other, the most telling comes last.
    companions=(
        *(f"../configs/{name}" for name in ("config.yaml", "model.yaml", "*-project.yaml")),
        *("config.yaml", "model.yaml", "*-project.yaml", "{stem}.yaml"),
    ),
)
