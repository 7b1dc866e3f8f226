"""The tensors of a Mamba-2 layer, alike in state-spaces/mamba and in transformers, and what they say of its sizes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..configuration.mamba2 import NoriaMamba2Config
from ..modeling.mamba2 import NoriaMamba2ForCausalLM
from .mamba_layer import Layer
from .mamba_rules import NORMS, add_channel, drop_channel
from .rules import Rule
from .settings import MISSING, Settings

ARGUMENTS = (
    "d_state",
    "d_conv",
    "conv_init",
    "expand",
    "headdim",
    "d_ssm",
    "ngroups",
    "A_init_range",
    "D_has_hdim",
    "rmsnorm",
    "norm_before_gate",
    "dt_min",
    "dt_max",
    "dt_init_floor",
    "dt_limit",
    "bias",
    "conv_bias",
    "chunk_size",
    "use_mem_eff_path",
)
NAMES = (
    "in_proj.weight",
    "in_proj.bias",
    "out_proj.weight",
    "out_proj.bias",
    "norm.weight",
    "A_log",
    "D",
    "dt_bias",
)
MIXER = (
    *(Rule(f"layers.{{}}.mixer.{name}", f"layers.{{}}.mixer.{name}") for name in NAMES),
    Rule("layers.{}.mixer.conv1d.weight", "layers.{}.mixer.conv.weight", drop_channel, add_channel),
    Rule("layers.{}.mixer.conv1d.bias", "layers.{}.mixer.conv.bias"),
)


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors of the first layer say; `shared` is the number of groups times the size of the state."""
    prefix = "layers.0.mixer."
    mixer = {name.removeprefix(prefix): part.shape for name, part in tensors.items() if name.startswith(prefix)}
    needed = ("A_log", "D", "conv1d.weight", "in_proj.weight", "out_proj.weight")
    lacking = [name for name in needed if name not in mixer]
    if lacking:
        raise ValueError(f"the checkpoint lacks {prefix}{lacking[0]}")
    heads, inner = mixer["A_log"][0], mixer["out_proj.weight"][1]
    both = mixer["in_proj.weight"][0] - 2 * inner - heads
    scanned = mixer["conv1d.weight"][0] - both
    if both < 2 or both % 2 or not 0 < scanned <= inner or scanned % heads:
        shapes = ", ".join(f"{name} {tuple(mixer[name])}" for name in needed)
        raise ValueError(f"the shapes of {prefix}* fit no Mamba-2 layer: {shapes}")
    return {
        "heads": heads,
        "inner": inner,
        "shared": both // 2,
        "scanned": scanned,
        "head_dim": scanned // heads,
        "kernel": mixer["conv1d.weight"][-1],
        "skip_per_channel": mixer["D"][0] == scanned != heads,
        "gate_norm": "norm.weight" in mixer,
        "conv_bias": "conv1d.bias" in mixer,
        "bias": "in_proj.bias" in mixer,
    }


def share_out(settings: Settings, shared: int, size: str, groups: str, default: tuple[int, int]) -> tuple[int, int]:
    """The size of the state and the number of groups, whose product the tensors have, by the upstream's names.

    What is not stated has the upstream's default, if the product allows it; the size also follows from the groups.
    """
    if settings.stated(groups)[1] and not settings.stated(size)[1]:
        number = settings.take(groups)
        return settings.take(size, shared // max(number, 1)), number
    named = settings.stated(size)[1] or default[0] * default[1] == shared
    found = settings.take(size, default=default[0] if named else MISSING)
    number = settings.take(groups, default=default[1] if named else MISSING)
    if found and number and found * number != shared:
        settings.wrong.append(f"{size} is {found} and {groups} {number}, but the tensors hold {shared} in all")
    return found or shared, number or 1


def limit(settings: Settings, name: str) -> list[float] | None:
    """The bounds of the step sizes, or None where they bound nothing."""
    stated = settings.take(name, default=(0.0, float("inf")))
    try:
        # transformers writes an infinite number as {"__float__": "Infinity"}.
        least, most = (float(bound["__float__"] if isinstance(bound, dict) else bound) for bound in stated)
    except (TypeError, ValueError, KeyError):
        settings.wrong.append(f"{name} is {stated!r}, not two numbers")
        return None
    return None if (least, most) == (0.0, float("inf")) else [least, most]


def fields(options: Settings, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of NoriaMamba2Config from `ssm_cfg` and the tensors below `backbone.`."""
    found = sizes(tensors)
    state, groups = share_out(options, found["shared"], "d_state", "ngroups", (128, 1))
    least, most = options.take("A_init_range", default=(1, 16))
    return {
        "inner_size": found["inner"],
        "expand": options.take("expand", default=2),
        "scan_size": options.take("d_ssm", found["scanned"]),
        "num_attention_heads": found["heads"],
        "head_dim": options.take("headdim", found["head_dim"]),
        "state_size": state,
        "num_groups": groups,
        "conv_kernel": options.take("d_conv", found["kernel"]),
        "decay_min": least,
        "decay_max": most,
        "time_step_min": options.take("dt_min", default=0.001),
        "time_step_max": options.take("dt_max", default=0.1),
        "time_step_floor": options.take("dt_init_floor", default=1e-4),
        "time_step_limit": limit(options, "dt_limit"),
        "skip_per_channel": options.take("D_has_hdim", found["skip_per_channel"]),
        "gate_norm": options.take("rmsnorm", found["gate_norm"]),
        "norm_before_gate": options.take("norm_before_gate", default=False),
        "use_conv_bias": options.take("conv_bias", found["conv_bias"]),
        "use_bias": options.take("bias", found["bias"]),
    }


MAMBA2 = Layer(
    name="Mamba2",
    config_class=NoriaMamba2Config,
    model_class=NoriaMamba2ForCausalLM,
    anchor="mixer.dt_bias",
    arguments=ARGUMENTS,
    fields=fields,
    rules=(*MIXER, *NORMS),
)
