"""Feature maps phi of linear attention: sim(q, k) = phi(q) phi(k)^T >= 0.

elu      elu(x) + 1                       Katharopoulos et al. 2020 (arXiv:2006.16236), eq. 7
relu     max(x, 0)
exp      e^x, shifted by a constant that the quotient cancels
softmax  softmax over channels for q, e^k with a normaliser per channel: Shen et al. 2018 (arXiv:1812.01243)
cosine   [1, x / |x|]:  sim = 1 + cos(q, k), in 0..2
taylor   [1, x]:        sim = 1 + q k^T, the first order of e^(q k); may turn negative
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class FeatureMap(NamedTuple):
    """`query` and `key` map (b h t d) to (b h t d); `constant` appends a feature that is always 1, after any rotation;
    `per_channel` normalises each feature by its own sum over the past."""

    query: Map
    key: Map
    constant: bool = False
    per_channel: bool = False


def elu_plus_one(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def shifted_exp(x: Tensor) -> Tensor:
    return (x - x.amax(dim=-1, keepdim=True)).exp()


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def same(x: Tensor) -> Tensor:
    return x


FEATURE_MAPS = {
    "elu": FeatureMap(elu_plus_one, elu_plus_one),
    "relu": FeatureMap(F.relu, F.relu),
    "exp": FeatureMap(shifted_exp, lambda x: x.exp()),
    "softmax": FeatureMap(lambda x: x.softmax(dim=-1), lambda x: x.exp(), per_channel=True),
    "cosine": FeatureMap(unit, unit, constant=True),
    "taylor": FeatureMap(same, same, constant=True),
}


def feature_map(name: str) -> FeatureMap:
    """The map called `name`. Raises ValueError naming the known ones otherwise."""
    if name not in FEATURE_MAPS:
        raise ValueError(f"unknown feature map {name!r}: choose from {sorted(FEATURE_MAPS)}.")
    return FEATURE_MAPS[name]
