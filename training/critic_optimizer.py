"""The optimizer of a network that a Trainer trains beside its model."""

from copy import copy

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer


def make_critic_optimizer(trainer: Trainer, critic: nn.Module, learning_rate: float) -> Optimizer:
    """What the trainer's arguments name for its own model, with the same parameters free of decay, but this rate."""
    args = copy(trainer.args)
    args.learning_rate = learning_rate
    kind, settings = trainer.get_optimizer_cls_and_kwargs(args, critic)
    decaying = set(trainer.get_decay_parameter_names(critic))
    groups: dict[float, list[nn.Parameter]] = {args.weight_decay: [], 0.0: []}
    for name, parameter in critic.named_parameters():
        if parameter.requires_grad:
            groups[args.weight_decay if name in decaying else 0.0].append(parameter)
    return kind([{"params": group, "weight_decay": decay} for decay, group in groups.items() if group], **settings)
