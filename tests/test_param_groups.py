"""Weight decay: what forgets, what is added and what scales is spared, in every architecture of the table."""

import copy

import pytest
import torch
from architectures import ENTRIES
from laws import over
from torch import nn

from noria import param_groups

# Wherever they appear: rates, skips and first steps of state-space models, decays of linear recurrences.
SPARED = ("A_log", ".D", "dt_bias", "decay", "log_a", "nu_log", "theta_log", "gamma_log")


def names(model: nn.Module) -> tuple[set[str], set[str]]:
    """The names of the parameters that decay, and of those that do not."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    with_decay, without = param_groups(model, 0.1)
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.1, 0.0)
    return {known[id(p)] for p in with_decay["params"]}, {known[id(p)] for p in without["params"]}


@over(ENTRIES)
def test_every_parameter_is_in_one_group_and_the_right_one(entry, tmp_path):
    model = entry.models["Model"](entry.config())
    decaying, spared = names(model)
    assert not decaying & spared
    assert decaying | spared == {name for name, _ in model.named_parameters()}
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    others = decaying - matrices
    assert not [name for name in others if name.endswith("bias") or any(part in name for part in SPARED)]
    assert matrices <= decaying
    model.save_pretrained(tmp_path)
    assert names(type(model).from_pretrained(tmp_path)) == names(copy.deepcopy(model)) == (decaying, spared)


def test_frozen_parameters_are_left_out_and_shared_ones_stand_once():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    decaying, others = param_groups(model)
    assert [id(p) for p in decaying["params"]] == [id(model[0].weight)]
    assert [id(p) for p in others["params"]] == [id(model[0].bias)]


def test_an_optimizer_leaves_the_spared_ones_alone():
    entry = next(entry for entry in ENTRIES if entry.name == "mamba")
    model = entry.model(dtype=torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    decaying, _ = names(model)
    optimizer = torch.optim.AdamW(param_groups(model, 0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * 0.95 if name in decaying else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


def test_wrong_use_is_named():
    class Careless(nn.Module):
        _no_weight_decay = ("rate",)

    with pytest.raises(ValueError, match="must not be negative, but is -1"):
        param_groups(nn.Linear(2, 2), -1)
    with pytest.raises(ValueError, match="Careless keeps rate from decaying, but has no such parameter"):
        param_groups(Careless())
