"""JunnYu/RoFormer_pytorch, the package `roformer` (0.4)  ->  NoriaRoFormerForMaskedLM, ...ForCausalLM and others.

Its folders hold config.json, pytorch_model.bin and vocab.txt, with tensors named as in transformers; `norm_type` and
`use_bias` make RoFormerV2 of them. Its RoFormerForCausalLM has a pooler and reads a prompt in both directions, as
RoFormer-Sim does, so it becomes a model with `unilm`.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..configuration.roformer import NoriaRoFormerConfig
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

POOLERS = {"linear": "linear", "tanh": "tanh"}
APPLICATIONS = {name: name for name in ("encoder", "lm", "unilm")}


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    require_roformer(checkpoint.state)
    source = Source(checkpoint, arguments)
    settings, tensors = source.settings, source.tensors
    layer_norm = "embeddings.LayerNorm.weight" in tensors
    application = find_application(source)
    usual_pooler = "linear" if application == "unilm" else "tanh"
    config = trunk_config(source) | {
        "version": 1 if layer_norm else 2,
        "norm_type": settings.take("norm_type", "layer_norm" if layer_norm else "rms_norm"),
        "use_bias": settings.take("use_bias", "encoder.layer.0.attention.self.query.bias" in tensors),
        "head_transform": layer_norm,
        "pooler": settings.choose("pooler_activation", POOLERS, usual_pooler) if POOLER in tensors else "none",
        "unilm": application == "unilm",
        "bidirectional": application != "lm",
    }
    return make_plan(source, head_class(source, application != "encoder"), config, fields)


def find_application(source: Source) -> str:
    """ "encoder", "lm" (GPT) or "unilm" (Sim), as bert4keras calls them: as stated, else by name, head and pooler."""
    name, usual = source.checkpoint.name, "encoder"
    writes = source.architecture == "RoFormerForCausalLM" or source.settings.take("is_decoder", default=False)
    if re.search(r"roformer[-_]?gpt|[-_]gpt[-_]", name, re.IGNORECASE):
        usual = "lm"
    elif POOLER in source.tensors and (writes or re.search(r"[-_]sim[-_]", name, re.IGNORECASE)):
        usual = "unilm"
    elif writes:
        usual = "lm"
    return source.settings.choose("application", APPLICATIONS, usual) or usual


JUNNYU = Format(
    name="junnyu",
    upstream="the package roformer",
    arguments=ARGUMENTS | {"norm_type", "use_bias", "pooler_activation", "application"},
    config_classes=(NoriaRoFormerConfig,),
    plan=plan,
    rules=rules,
    patterns=PATTERNS,
    companions=COMPANIONS,
)
