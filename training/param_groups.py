"""Which parameters decay towards zero in training, and which must not.

A module names those of its own parameters that must not in a class attribute:

    _no_weight_decay = ("A_log", "D", "dt_bias")

It is the class that says so, since an attribute of a parameter would not survive loading. Parameters of fewer than two
dimensions, such as biases, the weights of norms and decays of channels, need not be named.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def param_groups(model: nn.Module, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    """The trainable parameters in the two groups that an optimizer takes: with `weight_decay`, and without any.

        optimizer = torch.optim.AdamW(noria.param_groups(model, 0.1), lr=1e-3)
        trainer = Trainer(model, arguments, optimizers=(optimizer, None), ...)

    Every parameter stands in one group, shared ones once. Raises ValueError for a negative `weight_decay`, or where a
    module names a parameter that it does not have.
    """
    if weight_decay < 0:
        raise ValueError(f"`weight_decay` must not be negative, but is {weight_decay}.")
    spared = {id(parameter) for module in model.modules() for parameter in named_by(module)}
    decaying, others = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (others if parameter.dim() < 2 or id(parameter) in spared else decaying).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def named_by(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that a module keeps out of weight decay."""
    names = getattr(module, "_no_weight_decay", ())
    own = dict(module.named_parameters(recurse=False))
    missing = [name for name in names if name not in own and name not in module._parameters]
    if missing:
        raise ValueError(
            f"{type(module).__name__} keeps {', '.join(missing)} from decaying, but has no such parameter."
        )
    return [own[name] for name in names if name in own]
