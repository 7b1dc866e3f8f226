"""Mamba-2 of transformers itself  ->  NoriaMamba2 with the same head.

Defaults are those of transformers' Mamba2Config, which are Codestral's and not those of the authors' models.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..configuration.mamba2 import NoriaMamba2Config
from .format import Format
from .mamba2_rules import MAMBA2, limit, share_out, sizes
from .roformer_torch import ACTIVATIONS, COMPANIONS, PATTERNS
from .settings import Settings
from .transformers_ssm import ARGUMENTS, common_fields, plan_of, rules_of

OF_MAMBA2 = ("num_heads", "head_dim", "n_groups", "time_step_limit", "chunk_size")


def layer_fields(settings: Settings, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a layer."""
    found = sizes(tensors)
    state, groups = share_out(settings, found["shared"], "state_size", "n_groups", (128, 8))
    if found["scanned"] != found["inner"] or found["skip_per_channel"]:
        settings.wrong.append("its layers have channels beside the recurrence or a skip for each, as no Mamba2Config")
    return {
        **common_fields(settings, found),
        "inner_size": found["inner"],
        "scan_size": found["scanned"],
        "num_attention_heads": settings.take("num_heads", found["heads"]),
        "head_dim": settings.take("head_dim", found["head_dim"]),
        "state_size": state,
        "num_groups": groups,
        "conv_kernel": settings.take("conv_kernel", found["kernel"]),
        "hidden_act": settings.choose("hidden_act", ACTIVATIONS, "silu"),
        "time_step_limit": limit(settings, "time_step_limit"),
    }


MAMBA2_FOLDER = Format(
    name="transformers",
    upstream="transformers' Mamba2Config",
    arguments=frozenset((*ARGUMENTS, *OF_MAMBA2)),
    config_classes=(NoriaMamba2Config,),
    plan=partial(plan_of, MAMBA2, "Mamba-2 of transformers", layer_fields, False),
    rules=partial(rules_of, MAMBA2),
    patterns=PATTERNS,
    companions=COMPANIONS,
)
