"""Linear attention by its definition: every feature map and rotation, causal and bidirectional, by pairs of tokens."""

import pytest
import torch
from laws import same
from torch import Tensor

from noria import NoriaLinearTransformerConfig
from noria.modeling.mixers.feature_maps import FEATURE_MAPS, feature_map
from noria.modeling.mixers.linear_attention import LinearMixer
from noria.modeling.position.base import PositionEncoding
from noria.modeling.position.rotary import Rotary
from noria.modeling.state import Context

WAYS = [
    (name, way) for name in FEATURE_MAPS for way in ("none", "numerator", "both") if (name, way) != ("softmax", "both")
]


def make_mixer(name: str, way: str, eps: float = 0.0) -> LinearMixer:
    torch.manual_seed(1)
    fields = {"hidden_size": 12, "num_attention_heads": 2, "feature_map": name, "rotary": way, "normalizer_eps": eps}
    position = PositionEncoding() if way == "none" else Rotary(6)
    return LinearMixer(NoriaLinearTransformerConfig(**fields), position).double()


def turn(x: Tensor, position: int) -> Tensor:
    """R_m x by its block matrix, for one head's row x (d)."""
    angles = position * 10000.0 ** (-torch.arange(0, len(x), 2, dtype=torch.float64) / len(x))
    blocks = [torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]], dtype=torch.float64) for a in angles]
    return torch.block_diag(*blocks) @ x


def similarities(mixer: LinearMixer, q: Tensor, k: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
    """sim(q_i, k_j) in the numerator and in the denominator, for rows (d) of one head."""
    features, constant = mixer.features, float(mixer.features.constant)
    q, k = features.query(q), features.key(k)
    plain = q @ k + constant
    turned = turn(q, i) @ turn(k, j) + constant if isinstance(mixer.position, Rotary) else plain
    return turned, turned if mixer.joint else plain


def define(mixer: LinearMixer, x: Tensor, causal: bool) -> Tensor:
    """y (t d) for x (t d), by sums over pairs of tokens."""
    q, k, v = (proj(x).unflatten(-1, (2, 6)) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    rows = []
    for i in range(len(x)):
        seen, heads = range(i + 1 if causal else len(x)), []
        for h in range(2):
            if mixer.features.per_channel:
                weights = torch.stack([k[j, h] for j in seen]).softmax(dim=0)  # (s d): each channel sums to 1
                query = mixer.features.query(q[i, h])
                if isinstance(mixer.position, Rotary):
                    exponentials = torch.stack([k[j, h].exp() for j in seen])
                    query = turn(query / exponentials.sum(0), i)
                    weights = torch.stack([turn(row, j) for j, row in zip(seen, exponentials, strict=True)])
                heads.append(sum((query @ row) * v[j, h] for j, row in zip(seen, weights, strict=True)))
            else:
                pairs = [similarities(mixer, q[i, h], k[j, h], i, j) for j in seen]
                above = sum(pair[0] * v[j, h] for pair, j in zip(pairs, seen, strict=True))
                heads.append(above / sum(pair[1] for pair in pairs))
        rows.append(torch.cat(heads))
    return mixer.o_proj(torch.stack(rows))


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("causal", [True, False])
def test_it_is_what_its_equations_say(name, way, causal):
    mixer, x = make_mixer(name, way), torch.randn(1, 9, 12, dtype=torch.float64)
    if name == "relu":  # a query that shares no feature with any key has no weights at all: keep away from 0/0
        x = x.abs()
        for proj in (mixer.q_proj, mixer.k_proj):
            proj.weight.data.abs_()
    y, _ = mixer(x, Context(torch.arange(9)[None], causal=causal))
    same(y[0], define(mixer, x[0], causal), 1e-9)


@pytest.mark.parametrize(("name", "way"), [pair for pair in WAYS if pair[1] != "none"])
def test_rotation_makes_distances_count_and_nothing_else(name, way):
    mixer, x = make_mixer(name, way, eps=1e-6), torch.randn(1, 7, 12, dtype=torch.float64)
    here, _ = mixer(x, Context(torch.arange(7)[None]))
    there, _ = mixer(x, Context(torch.arange(7)[None] + 1000))
    same(there, here, 1e-8)
    mixed, _ = mixer(x, Context(torch.arange(7)[None] * 3))
    assert (mixed - here).abs().max() > 1e-4


def test_which_scores_may_turn_negative():
    """Rotated elu features may, 1 + cos never, 1 + q k^T may: why `numerator` leaves the denominator unrotated."""
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(400, 16, dtype=torch.float64, generator=draw) * 2 for _ in range(2))
    rows = range(400)

    def scores(name: str, rotated: bool) -> Tensor:
        features = feature_map(name)
        left, right = features.query(q), features.key(k)
        if rotated:
            left = torch.stack([turn(left[i], i) for i in rows])
        return (left * right).sum(-1) + float(features.constant)

    assert scores("elu", rotated=False).min() > 0
    assert scores("elu", rotated=True).min() < 0
    assert 0 <= scores("cosine", rotated=True).min() <= scores("cosine", rotated=True).max() <= 2
    assert scores("taylor", rotated=False).min() < 0


def test_an_unknown_map_is_named():
    with pytest.raises(ValueError, match=r"unknown feature map 'cube': choose from \['cosine', 'elu'"):
        feature_map("cube")


def test_rotation_keeps_norms_and_sees_distances_alone():
    rotary, q, k = Rotary(8), *torch.randn(2, 1, 1, 5, 8, dtype=torch.float64)
    near = rotary.rotate(q, k, Context(torch.arange(5)[None]))
    far = rotary.rotate(q, k, Context(torch.arange(5)[None] + 65536))
    same(near[0].norm(dim=-1), q.norm(dim=-1))
    same(far[0] @ far[1].transpose(-1, -2), near[0] @ near[1].transpose(-1, -2), 1e-9)
    same(near[0][0, 0, 3], turn(q[0, 0, 3], 3))
    with pytest.raises(ValueError, match="the head size must be even, not 7"):
        Rotary(7)
