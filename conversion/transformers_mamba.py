"""Mamba of transformers itself  ->  NoriaMamba with the same head."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..configuration.mamba import NoriaMambaConfig
from .format import Format
from .mamba_rules import MAMBA, sizes
from .roformer_torch import ACTIVATIONS, COMPANIONS, PATTERNS
from .settings import Settings
from .transformers_ssm import ARGUMENTS, common_fields, plan_of, rules_of

OF_MAMBA = ("intermediate_size", "time_step_scale", "time_step_init_scheme", "use_mambapy", "use_associative_scan")


def layer_fields(settings: Settings, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a layer; transformers' names are those of NoriaMambaConfig but for a few."""
    found = sizes(tensors)
    if settings.stated("time_step_rank")[0] != "auto":
        settings.take("time_step_rank", found["dt_rank"])
    return {
        **common_fields(settings, found),
        "inner_size": settings.take("intermediate_size", found["inner"]),
        "state_size": settings.take("state_size", found["d_state"]),
        "conv_kernel": settings.take("conv_kernel", found["d_conv"]),
        "time_step_rank": found["dt_rank"],
        "hidden_act": settings.choose("hidden_act", ACTIVATIONS, "silu"),
    }


MAMBA_FOLDER = Format(
    name="transformers",
    upstream="transformers' MambaConfig",
    arguments=frozenset((*ARGUMENTS, *OF_MAMBA)),
    config_classes=(NoriaMambaConfig,),
    plan=partial(plan_of, MAMBA, "Mamba of transformers", layer_fields, True),
    rules=partial(rules_of, MAMBA),
    patterns=PATTERNS,
    companions=COMPANIONS,
)
