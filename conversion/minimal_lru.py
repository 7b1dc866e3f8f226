"""NicolasZucchet/minimal-LRU, ClassificationModel or its StackedEncoderModel  ->  NoriaLRU classifier or model.

Read from Flax's msgpack files, of all variables ({"params": ..., "batch_stats": ...}, also inside a train state) or of
the parameters alone. Flax keeps dense kernels as (in out); B and C become linear maps over both parts side by side,
where Re(C h) = C_re h_re - C_im h_im turns a sign. The classifier's logits are those before its log_softmax.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..configuration.lru import NoriaLRUConfig
from ..modeling.lru import NoriaLRUForSequenceClassification, NoriaLRUModel
from .checkpoint import Checkpoint
from .format import Format, Plan, layer_count
from .rules import Rule
from .settings import Settings

ANCHOR = "layers_0.seq.nu_log"
ENCODER = "encoder."
# What stands before the names of an encoder's layers, inside a classifier or not, in all variables or not.
STEMS = (f"params.{ENCODER}", ENCODER, "params.", "")
NORMS, EPSILONS = {"layer": "layer_norm", "batch": "batch_norm"}, {"layer": 1e-6, "batch": 1e-5}
POOLINGS = {name: name for name in ("mean", "last", "none")}
MATHEMATICAL = [
    *("d_hidden", "d_model", "d_output", "d_input", "n_layers", "norm", "prenorm", "pooling", "multidim"),
    *("dropout", "r_min", "r_max", "max_phase"),
]
INDIFFERENT = ["training"]


def transposed(kernel: Tensor) -> Tensor:
    return kernel.mT


def stacked(real: Tensor, imaginary: Tensor) -> Tensor:
    """B_re, B_im (n d) -> the map (2n d) into the real and imaginary parts."""
    return torch.cat((real, imaginary))


def unstacked(weight: Tensor) -> tuple[Tensor, Tensor]:
    real, imaginary = weight.chunk(2)
    return real, imaginary


def beside(real: Tensor, imaginary: Tensor) -> Tensor:
    """C_re, C_im (d n) -> the map (d 2n) out of the real and imaginary parts."""
    return torch.cat((real, -imaginary), dim=1)


def parted(weight: Tensor) -> tuple[Tensor, Tensor]:
    real, imaginary = weight.chunk(2, dim=1)
    return real, -imaginary


def dense(source: str, target: str) -> tuple[Rule, Rule]:
    kernel = Rule(f"{source}.kernel", f"{target}.weight", transposed, transposed)
    return kernel, Rule(f"{source}.bias", f"{target}.bias")


def body(params: str, statistics: str, model: str) -> tuple[Rule, ...]:
    """The rules of an encoder: below which names its parameters, its running statistics and our model stand."""
    layer, ours = f"{params}layers_{{}}.", f"{model}layers.{{}}."
    return (
        *dense(f"{params}encoder", f"{model}input_proj"),
        *(Rule(f"{layer}seq.{name}", f"{ours}mixer.{name}") for name in ("nu_log", "theta_log", "gamma_log", "D")),
        Rule((f"{layer}seq.B_re", f"{layer}seq.B_im"), f"{ours}mixer.in_proj.weight", stacked, unstacked),
        Rule((f"{layer}seq.C_re", f"{layer}seq.C_im"), f"{ours}mixer.out_proj.weight", beside, parted),
        *dense(f"{layer}out1", f"{ours}glu.value_proj"),
        *dense(f"{layer}out2", f"{ours}glu.gate_proj"),
        Rule(f"{layer}normalization.scale", f"{ours}mixer_norm.weight"),
        Rule(f"{layer}normalization.bias", f"{ours}mixer_norm.bias"),
        Rule(f"{statistics}layers_{{}}.normalization.mean", f"{ours}mixer_norm.running_mean"),
        Rule(f"{statistics}layers_{{}}.normalization.var", f"{ours}mixer_norm.running_var"),
    )


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    """The table for all variables, then the same for parameters that stand alone."""
    collections = (("params.", "batch_stats."), ("", "batch_stats."))
    if NoriaLRUModel.__name__ in (config.architectures or []):
        return [rule for params, statistics in collections for rule in body(params, statistics, "")]
    return [
        rule
        for params, statistics in collections
        for rule in (
            *body(f"{params}{ENCODER}", f"{statistics}{ENCODER}", "model."),
            *dense(f"{params}decoder", "score"),
        )
    ]


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    stem = next((stem for stem in STEMS if stem + ANCHOR in checkpoint.state), None)
    if stem is None:
        names = ", ".join(list(checkpoint.state)[:4])
        raise ValueError(f"it is not a model of minimal-LRU: no params.{ENCODER}{ANCHOR} among {names}, ...")
    tensors = {name[len(stem) :]: tensor for name, tensor in checkpoint.state.items() if name.startswith(stem)}
    head = None
    if stem.endswith(ENCODER):
        head = checkpoint.state.get(f"{stem.removesuffix(ENCODER)}decoder.bias")
    model_class = NoriaLRUModel if head is None else NoriaLRUForSequenceClassification
    settings = Settings(arguments, {})
    if not arguments:
        settings.missing += ["prenorm"] if head is None else ["prenorm", "pooling"]
    normalised = any(name.startswith("batch_stats.") for name in checkpoint.state)
    config = lru_config(settings, tensors, "batch" if normalised else "layer")
    if head is not None:
        settings.refuse("multidim", 1, "a classifier here gives one row of logits")
        config["pooling"] = settings.choose("pooling", POOLINGS, "mean")
        config["num_labels"] = settings.take("d_output", head.shape[0])
    settings.finish()
    noria = NoriaLRUConfig(**{**config, **fields}, architectures=[model_class.__name__])
    return Plan(noria, model_class, settings=settings.record)


def lru_config(settings: Settings, tensors: Mapping[str, Tensor], norm: str) -> dict[str, Any]:
    """The fields of NoriaLRUConfig from the constructors' arguments and the tensors' shapes."""
    states = tensors[ANCHOR].shape[0]
    width, inputs = (size(tensors, name, place) for name, place in (("encoder.kernel", 1), ("encoder.kernel", 0)))
    norm = settings.take("norm", norm)
    if norm not in NORMS:
        settings.wrong.append(f"norm is {norm!r}, not one of {', '.join(NORMS)}")
        norm = "layer"
    return {
        "vocab_size": 0,
        "hidden_size": settings.take("d_model", width),
        "input_size": settings.take("d_input", inputs),
        "num_hidden_layers": settings.take("n_layers", layer_count(tensors, "layers_")),
        "state_size": settings.take("d_hidden", states),
        "norm": NORMS[norm],
        "norm_eps": EPSILONS[norm],
        "prenorm": settings.take("prenorm", default=False),
        "final_norm": False,
        "dropout": settings.take("dropout", default=0.0),
        "r_min": settings.take("r_min", default=0.0),
        "r_max": settings.take("r_max", default=1.0),
        "max_phase": settings.take("max_phase", default=6.28),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def size(tensors: Mapping[str, Tensor], name: str, place: int) -> int:
    """ValueError where the tensor is missing or no matrix."""
    if name not in tensors or tensors[name].dim() != 2:
        raise ValueError(f"the checkpoint lacks {name}, a matrix")
    return tensors[name].shape[place]


MINIMAL_LRU = Format(
    name="minimal_lru",
    upstream="minimal-LRU's ClassificationModel",
    arguments=frozenset((*MATHEMATICAL, *INDIFFERENT)),
    config_classes=(NoriaLRUConfig,),
    plan=plan,
    rules=rules,
    patterns=("*.msgpack",),
)
