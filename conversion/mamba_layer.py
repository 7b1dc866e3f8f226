"""What a kind of layer brings to the conversion of state-space language models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from .rules import Rule
from .settings import Settings


@dataclass(frozen=True)
class Layer:
    """One kind of layer, by the upstream's `name` for it.

    `anchor` is a tensor below `layers.0.` that no other kind has. `arguments` are those of the layer's constructor
    (`ssm_cfg`); `fields` makes fields of the configuration from them and from the tensors below `backbone.`. The table
    `rules` is that of all tensors but the embedding and the head, from below `backbone.` to below `model.`.
    """

    name: str
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    anchor: str
    arguments: Sequence[str]
    fields: Callable[[Settings, Mapping[str, Tensor]], dict[str, Any]]
    rules: Sequence[Rule]
