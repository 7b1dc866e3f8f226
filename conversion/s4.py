"""state-spaces/s4, one S4Block (DPLR, diagonal or DSS kernel) or S4D of the minimal file  ->  NoriaS4Model.

The layer has no embedding, norm, residual sum or head: the model is `bare`, has `vocab_size` 0 and takes
`inputs_embeds`. Names of version 4 (layer.kernel.inv_dt ...), version 3 (kernel.kernel.log_dt ...) and of the minimal
s4d.py are read; version 3 and the minimal file store imaginary parts of the opposite sign. A DPLR file that was run
holds C (I - A^L) in place of C, with L in l_kernel: it is kept so, as `kernel_length`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from ..configuration.s4 import INITS, TRANSFORMS, NoriaS4Config
from ..modeling.s4 import NoriaS4Model
from .checkpoint import Checkpoint
from .format import Format, Plan, common_prefix
from .rules import Rule
from .settings import Settings

LAYER = "layers.0.mixer"
KERNEL = f"{LAYER}.kernel"
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh"}
INIT_NAMES = {"hippo": "legs", "fourier": "fout", "linear": "lin", "inverse": "inv", "quadratic": "quad"}
V3_REAL = ("inv_w_real", "log_w_real", "inv_A_real", "log_A_real")
# Where each version keeps C, and the prefix of its kernel's tensors.
ANCHORS = {"layer.kernel.C": "layer.kernel.", "kernel.kernel.C": "kernel.kernel.", "kernel.C": "kernel."}
MODES = {"dplr": "s4", "nplr": "s4", "s4": "s4", "diag": "s4d", "s4d": "s4d"}
MATHEMATICAL = [
    "d_model",
    "d_state",
    "l_max",
    "channels",
    "bidirectional",
    "activation",
    "mode",
    "kernel",
    "final_act",
    "mult_act",
    "gate",
    "bottleneck",
    "postact",
    "dropout",
    "N",
    "dt_min",
    "dt_max",
    "dt_tie",
    "dt_transform",
    "dt_fast",
    "rank",
    "n_ssm",
    "init",
    "measure",
    "disc",
    "real_transform",
    "imag_transform",
    "bandlimit",
    "is_real",
]
# Training, and the order of the axes of the input, which is (batch, time, width) here.
INDIFFERENT = [
    "transposed",
    "tie_dropout",
    "drop_kernel",
    "swap_channels",
    "gate_act",
    "initializer",
    "weight_norm",
    "lr",
    "wd",
    "verbose",
    "deterministic",
    "backend",
]


def unsqueezed(place: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What adds an axis of size 1 at `place`, and what takes it away."""
    return lambda x: x.unsqueeze(place), lambda x: x.squeeze(place)


def squeezed(place: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    return unsqueezed(place)[::-1]


def negated(x: Tensor) -> Tensor:
    return -x


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    # Real systems store numbers where complex ones store pairs.
    pair = unsqueezed(-1) if config.real_states else (lambda x: x, lambda x: x)
    one_row = (lambda x: pair[0](x.squeeze(0)), lambda x: pair[1](x).unsqueeze(0))
    version4 = (
        Rule("layer.D", f"{LAYER}.D", *squeezed(0)),
        Rule("layer.kernel.inv_dt", f"{KERNEL}.dt"),
        Rule("layer.kernel.A_real", f"{KERNEL}.A_real"),
        Rule("layer.kernel.A_imag", f"{KERNEL}.A_imag"),
        Rule("layer.kernel.B", f"{KERNEL}.B", *one_row),
        Rule("layer.kernel.C", f"{KERNEL}.C", *pair),
        Rule("layer.kernel.P", f"{KERNEL}.P"),
        Rule("layer.kernel.l_kernel", reason="its value is kernel_length"),
    )
    version3 = (
        Rule("kernel.kernel.log_dt", f"{KERNEL}.dt", *unsqueezed(-1)),
        *(Rule(f"kernel.kernel.{name}", f"{KERNEL}.A_real") for name in V3_REAL),
        *(Rule(f"kernel.kernel.{name}", f"{KERNEL}.A_imag", negated, negated) for name in ("w_imag", "A_imag")),
        Rule("kernel.kernel.B", f"{KERNEL}.B", *one_row),
        Rule("kernel.kernel.C", f"{KERNEL}.C", *pair),
        Rule("kernel.kernel.P", f"{KERNEL}.P"),
        Rule("kernel.kernel.L", reason="its value is kernel_length"),
    )
    output = (
        Rule("output_linear.0.weight", f"{LAYER}.output_linear.weight"),
        Rule("output_linear.0.bias", f"{LAYER}.output_linear.bias"),
    )
    if config.input_matrix:
        return (*version4, *version3, Rule("D", f"{LAYER}.D", *squeezed(0)), *output)
    return (
        Rule("D", f"{LAYER}.D"),
        Rule("kernel.C", f"{KERNEL}.C", *unsqueezed(0)),
        Rule("kernel.log_dt", f"{KERNEL}.dt", *unsqueezed(-1)),
        Rule("kernel.log_A_real", f"{KERNEL}.A_real"),
        Rule("kernel.A_imag", f"{KERNEL}.A_imag", negated, negated),
        Rule("output_linear.0.weight", f"{LAYER}.output_linear.weight", *squeezed(-1)),
        output[1],
    )


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    anchor = next((name for name in ANCHORS if any(key.endswith(name) for key in checkpoint.state)), None)
    if anchor is None:
        names = ", ".join(list(checkpoint.state)[:4])
        raise ValueError(f"it is not a layer of state-spaces/s4: no layer.kernel.C among {names}, ...")
    prefix = common_prefix(checkpoint.state, anchor)
    start = prefix + ANCHORS[anchor]
    kernel = {name[len(start) :]: tensor for name, tensor in checkpoint.state.items() if name.startswith(start)}
    settings = Settings(arguments, {})
    minimal = anchor == "kernel.C"
    if not arguments and not minimal:
        settings.missing += ["dt_transform", "real_transform", *(() if "P" in kernel else ("disc",))]
    config = minimal_config(settings, kernel) if minimal else block_config(settings, kernel)
    settings.finish()
    shared = {"vocab_size": 0, "num_hidden_layers": 1, "bare": True, "bos_token_id": None, "eos_token_id": None}
    noria = NoriaS4Config(**{**shared, **config, **fields})
    return Plan(noria, NoriaS4Model, prefix, settings.record)


def minimal_config(settings: Settings, kernel: Mapping[str, Tensor]) -> dict[str, Any]:
    width, count = kernel["C"].shape[:2]
    return {
        "hidden_size": settings.take("d_model", width),
        "state_size": settings.take("d_state", 2 * count),
        "kernel": "s4d",
        "input_matrix": False,
        "dropout": settings.take("dropout", default=0.0),
        "dt_min": settings.take("dt_min", default=0.001),
        "dt_max": settings.take("dt_max", default=0.1),
    }


def block_config(settings: Settings, kernel: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of NoriaS4Config from S4Block's arguments and the tensors' shapes."""
    refuse_variants(settings)
    outputs, real = kernel["C"], kernel["C"].dim() == 3
    settings.take("is_real", real)
    rank = kernel["P"].shape[0] if "P" in kernel else None
    length = next((int(kernel[name]) for name in ("l_kernel", "L") if name in kernel), 0)
    return {
        "hidden_size": settings.take("d_model", outputs.shape[1]),
        "state_size": settings.take("d_state", outputs.shape[2] * (1 if real else 2)),
        "real_states": real,
        "bidirectional": directions(settings, outputs.shape[0]),
        "num_ssm": settings.take("n_ssm", systems(kernel)),
        "rank": None if rank is None else settings.take("rank", rank),
        "max_kernel_length": settings.take("l_max", default=None),
        "kernel_length": length,
        "hidden_act": settings.choose("activation", ACTIVATIONS, "gelu"),
        "dt_act": settings.choose("dt_transform", {name: name for name in TRANSFORMS}, "exp"),
        "real_act": settings.choose("real_transform", {name: name for name in TRANSFORMS}, "exp"),
        "dropout": settings.take("dropout", default=0.0),
        "dt_min": settings.take("dt_min", default=0.001),
        "dt_max": settings.take("dt_max", default=0.1),
        **kernel_kind(settings, rank is not None),
    }


def refuse_variants(settings: Settings) -> None:
    for name, accepted, reason in (
        ("final_act", "glu", "the output layer is gated here"),
        ("mult_act", None, "there is no second activation here"),
        ("postact", None, "final_act says it"),
        ("gate", None, "gated blocks are not implemented"),
        ("bottleneck", None, "bottlenecks are not implemented"),
        ("dt_tie", True, "a channel has one step size here"),
        ("dt_fast", False, "only steps of the usual parametrisation are implemented"),
        ("imag_transform", "none", "imaginary parts are stored as they are"),
        ("bandlimit", None, "the filter by frequency is not implemented"),
    ):
        settings.refuse(name, accepted, reason)


def systems(kernel: Mapping[str, Tensor]) -> int:
    """How many independent systems there are."""
    return next(kernel[name].shape[0] for name in ("A_real", *V3_REAL) if name in kernel)


def directions(settings: Settings, kernels: int) -> bool:
    """Whether the layer runs both ways: two kernels may also be two channels, which the tensors do not tell."""
    both = settings.take("bidirectional", default=False) if kernels == 2 else settings.take("bidirectional", False)
    settings.refuse("channels", 1, "a system has one output here")
    if kernels != (2 if both else 1):
        settings.wrong.append(
            f"C holds {kernels} kernels: say bidirectional=true where the second runs from the end; several channels "
            "cannot be converted"
        )
    return bool(both)


def kernel_kind(settings: Settings, low_rank: bool) -> dict[str, Any]:
    """The kernel, its discretisation and what it began from."""
    name = "kernel" if settings.stated("kernel")[0] else "mode"
    kind = settings.choose(name, MODES, "dplr" if low_rank else "diag")
    if (kind == "s4") != low_rank:
        settings.wrong.append(f"{name} says {kind!r}, but there is {'a' if low_rank else 'no'} kernel.P")
    discretization = "bilinear"
    if not low_rank:
        rule = settings.choose("disc", {rule: rule for rule in ("zoh", "bilinear", "dss")}, "zoh")
        kind, discretization = ("dss", "softmax") if rule == "dss" else ("s4d", rule)
    init = str(settings.take("measure", default=None) or settings.take("init", default="legs"))
    init = init.removeprefix("diag").removeprefix("-")
    init = INIT_NAMES.get(init, init)
    known = init in INITS.get(kind or "s4", ())
    return {"kernel": kind or "s4", "discretization": discretization, "init": init if known else None}


S4 = Format(
    name="s4",
    upstream="S4Block of state-spaces/s4",
    arguments=frozenset((*MATHEMATICAL, *INDIFFERENT)),
    config_classes=(NoriaS4Config,),
    plan=plan,
    rules=rules,
)
