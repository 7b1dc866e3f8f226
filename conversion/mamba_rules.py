"""The tensors of a Mamba layer, alike in state-spaces/mamba and in transformers, and what they say of its sizes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..configuration.mamba import NoriaMambaConfig
from ..modeling.mamba import NoriaMambaForCausalLM
from .mamba_layer import Layer
from .rules import Rule
from .settings import Settings

ARGUMENTS = (
    "d_state",
    "d_conv",
    "expand",
    "dt_rank",
    "dt_min",
    "dt_max",
    "dt_init",
    "dt_scale",
    "dt_init_floor",
    "conv_bias",
    "bias",
    "use_fast_path",
)


def drop_channel(weight: Tensor) -> Tensor:
    """(d 1 k) -> (d k)."""
    return weight.squeeze(1)


def add_channel(weight: Tensor) -> Tensor:
    """(d k) -> (d 1 k)."""
    return weight.unsqueeze(1)


MIXER = (
    *(
        Rule(f"layers.{{}}.mixer.{name}", f"layers.{{}}.mixer.{name}")
        for name in (
            "in_proj.weight",
            "in_proj.bias",
            "x_proj.weight",
            "dt_proj.weight",
            "out_proj.weight",
            "out_proj.bias",
            "A_log",
            "D",
        )
    ),
    Rule("layers.{}.mixer.conv1d.weight", "layers.{}.mixer.conv.weight", drop_channel, add_channel),
    Rule("layers.{}.mixer.conv1d.bias", "layers.{}.mixer.conv.bias"),
    Rule("layers.{}.mixer.dt_proj.bias", "layers.{}.mixer.dt_bias"),
)
NORMS = tuple(
    Rule(f"{source}.{kind}", f"{target}.{kind}")
    for source, target in (("layers.{}.norm", "layers.{}.mixer_norm"), ("norm_f", "norm"))
    for kind in ("weight", "bias")
)


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors of the first layer say, by the names that state-spaces/mamba has for it."""
    mixer = {
        name.removeprefix("layers.0.mixer."): tensor.shape
        for name, tensor in tensors.items()
        if name.startswith("layers.0.mixer.")
    }
    lacking = [name for name in ("A_log", "conv1d.weight", "dt_proj.weight") if name not in mixer]
    if lacking:
        raise ValueError(f"the checkpoint lacks layers.0.mixer.{lacking[0]}")
    return {
        "inner": mixer["A_log"][0],
        "d_state": mixer["A_log"][1],
        "d_conv": mixer["conv1d.weight"][-1],
        "dt_rank": mixer["dt_proj.weight"][1],
        "conv_bias": "conv1d.bias" in mixer,
        "bias": "in_proj.bias" in mixer,
    }


def fields(options: Settings, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of NoriaMambaConfig from `ssm_cfg` and the tensors below `backbone.`."""
    found = sizes(tensors)
    rank = options.stated("dt_rank")[0]
    return {
        "inner_size": found["inner"],
        "expand": options.take("expand", default=2),
        "state_size": options.take("d_state", found["d_state"]),
        "conv_kernel": options.take("d_conv", found["d_conv"]),
        "time_step_rank": found["dt_rank"] if rank == "auto" else options.take("dt_rank", found["dt_rank"]),
        "time_step_min": options.take("dt_min", default=0.001),
        "time_step_max": options.take("dt_max", default=0.1),
        "time_step_floor": options.take("dt_init_floor", default=1e-4),
        "use_conv_bias": options.take("conv_bias", found["conv_bias"]),
        "use_bias": options.take("bias", found["bias"]),
    }


MAMBA = Layer(
    name="Mamba1",
    config_class=NoriaMambaConfig,
    model_class=NoriaMambaForCausalLM,
    anchor="mixer.x_proj.weight",
    arguments=ARGUMENTS,
    fields=fields,
    rules=(*MIXER, *NORMS),
)
