"""RoFormer of transformers itself  ->  NoriaRoFormer with the same head."""

from collections.abc import Mapping
from typing import Any

from ..configuration.roformer import NoriaRoFormerConfig
from ..modeling.roformer import NoriaRoFormerForCausalLM
from .checkpoint import Checkpoint
from .format import Format, Plan
from .roformer_rules import POOLER, rules
from .roformer_torch import (
    ARGUMENTS,
    COMPANIONS,
    PATTERNS,
    Source,
    head_class,
    make_plan,
    require_roformer,
    trunk_config,
)


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    require_roformer(checkpoint.state)
    source = Source(checkpoint, arguments)
    settings = source.settings
    if POOLER in source.tensors or "embeddings.LayerNorm.weight" not in source.tensors:
        raise ValueError("it is a RoFormer of the package `roformer`, with a pooler or of version 2: say junnyu")
    decoder = settings.take("is_decoder", default=False)
    model_class = head_class(source, decoder)
    if source.architecture == "RoFormerForCausalLM" and model_class is not NoriaRoFormerForCausalLM:
        settings.wrong.append(
            "is_decoder is false, so that RoFormerForCausalLM sees both directions: say is_decoder=true to make it "
            "causal, architectures=RoFormerForMaskedLM to keep it as it is"
        )
    config = trunk_config(source) | {"version": 1, "bidirectional": not decoder}
    return make_plan(source, model_class, config, fields)


ROFORMER = Format(
    name="transformers",
    upstream="transformers' RoFormerConfig",
    arguments=ARGUMENTS,
    config_classes=(NoriaRoFormerConfig,),
    plan=plan,
    rules=rules,
    patterns=PATTERNS,
    companions=COMPANIONS,
)
