"""Mamba-2 by its equations, in every option; sizes that are derived; what its parameters begin with."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from noria import NoriaMamba2Config, NoriaMamba2ForCausalLM, NoriaMamba2Model
from noria.modeling.mixers.mamba2 import DualSSM
from noria.modeling.state import Context

SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "vocab_size": 31, "state_size": 5}
OPTIONS = [
    {"num_attention_heads": 3},
    {"num_attention_heads": 4, "num_groups": 2},
    {"num_attention_heads": 4, "num_groups": 2, "norm_before_gate": True, "skip_per_channel": True},
    {"scan_size": 16, "num_attention_heads": 4, "use_bias": True, "use_conv_bias": False},
    {"gate_norm": False, "time_step_limit": [0.02, 0.05], "conv_kernel": 2, "hidden_act": "gelu"},
    {"time_step_limit": [0.02, float("inf")], "norm_eps": 1e-2},
]


def make_mixer(**options) -> tuple[DualSSM, NoriaMamba2Config]:
    torch.manual_seed(0)
    config = NoriaMamba2Config(**SIZES | options)
    mixer = NoriaMamba2Model(config).double().layers[1].mixer
    for parameter in mixer.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return mixer, config


def convolved(mixer: DualSSM, mixed: Tensor, act) -> Tensor:
    """The convolution of one row (t d), by its definition."""
    k = mixer.conv.kernel
    padded = F.pad(mixed, (0, 0, k - 1, 0))
    sums = torch.stack([(padded[t : t + k] * mixer.conv.weight.t()).sum(0) for t in range(len(mixed))])
    return act(sums if mixer.conv.bias is None else sums + mixer.conv.bias)


def rms(y: Tensor, groups: int, eps: float) -> Tensor:
    parts = y.view(groups, -1)
    return (parts / (parts.square().mean(1, keepdim=True) + eps).sqrt()).flatten()


def by_equations(mixer: DualSSM, config: NoriaMamba2Config, x: Tensor) -> Tensor:
    """x (t d) -> (t d): one token, one head at a time."""
    heads, dim, n, groups = config.num_attention_heads, config.head_dim, config.state_size, config.num_groups
    beside = config.inner_size - config.scan_size
    act = {"silu": F.silu, "gelu": F.gelu}[config.hidden_act]
    z0, x0, z, mixed, step = mixer.in_proj(x).split(
        [beside, beside, heads * dim, heads * dim + 2 * groups * n, heads], 1
    )
    mixed = convolved(mixer, mixed, act)
    skip = mixer.D if config.skip_per_channel else mixer.D.repeat_interleave(dim)
    memory, outputs = torch.zeros(heads, n, dim, dtype=torch.float64), []
    for t in range(len(x)):
        u, b, c = mixed[t].split([heads * dim, groups * n, groups * n])
        delta = F.softplus(step[t] + mixer.dt_bias)
        if config.time_step_limit is not None:
            delta = delta.clamp(*config.time_step_limit)
        y = []
        for h in range(heads):
            g = h * groups // heads
            share = delta[h] * b.view(groups, n)[g][:, None] * u.view(heads, dim)[h][None]
            memory = torch.cat(
                [memory[:h], (torch.exp(-delta[h] * mixer.A_log[h].exp()) * memory[h] + share)[None], memory[h + 1 :]]
            )
            y.append(c.view(groups, n)[g] @ memory[h])
        y, gate = torch.cat(y) + skip * u, F.silu(z[t])
        if not config.gate_norm:
            y = y * gate
        elif config.norm_before_gate:
            y = rms(y, groups, config.norm_eps) * mixer.norm.weight * gate
        else:
            y = rms(y * gate, groups, config.norm_eps) * mixer.norm.weight
        outputs.append(torch.cat([F.silu(z0[t]) * x0[t], y]))
    return mixer.out_proj(torch.stack(outputs))


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
def test_the_mixer_is_its_equations(options: dict) -> None:
    mixer, config = make_mixer(**options)
    x = torch.randn(2, 9, config.hidden_size, dtype=torch.float64)
    y, _ = mixer(x, Context(torch.arange(9)[None]))
    expected = torch.stack([by_equations(mixer, config, row) for row in x])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_both_directions_are_the_sum_of_two_scans() -> None:
    mixer, config = make_mixer(num_attention_heads=2, conv_kernel=1)
    x = torch.randn(1, 11, config.hidden_size, dtype=torch.float64)
    context = Context(torch.arange(11)[None], causal=False)
    scans = []
    mixer.norm.register_forward_pre_hook(lambda module, given: scans.append(given[0]))
    mixer(x, context)
    context.causal = True
    mixer(x, context)
    mixer(x.flip(1), context)
    torch.testing.assert_close(scans[0], scans[1] + scans[2].flip(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"hidden_size": 48}, (2, 48, 96, 96)),
        ({"hidden_size": 48, "num_attention_heads": 3}, (3, 32, 96, 96)),
        ({"hidden_size": 48, "num_attention_heads": 5}, (5, 20, 100, 100)),
        ({"hidden_size": 48, "head_dim": 64}, (2, 64, 128, 128)),
        ({"hidden_size": 48, "num_groups": 8}, (8, 12, 96, 96)),
        ({"hidden_size": 37}, (1, 74, 74, 74)),
        ({"hidden_size": 768}, (24, 64, 1536, 1536)),
        ({"hidden_size": 48, "scan_size": 64}, (1, 64, 64, 96)),
        ({"hidden_size": 1, "expand": 0.5}, (1, 1, 1, 1)),
    ],
)
def test_sizes_are_derived(given: dict, found: tuple) -> None:
    config = NoriaMamba2Config(**given)
    for again in (config, NoriaMamba2Config.from_dict(config.to_dict())):
        assert (again.num_attention_heads, again.head_dim, again.scan_size, again.inner_size) == found
    with torch.device("meta"):
        NoriaMamba2ForCausalLM(config)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_attention_heads": 5, "inner_size": 96}, "5 heads .* of 20 .* do not make up the 96 channels"),
        ({"num_attention_heads": 4, "head_dim": 5, "scan_size": 24}, "4 heads .* of 5 .* do not make up the 24"),
        (
            {"num_attention_heads": 3, "num_groups": 2},
            r"`num_attention_heads` \(3\) is not a multiple of `num_groups`",
        ),
        ({"num_groups": 0}, "`num_groups` must be at least 1, not 0"),
        ({"head_dim": 0}, "`head_dim` must be at least 1, not 0"),
        ({"scan_size": 96, "inner_size": 48}, r"`scan_size` \(96\) must be at most `inner_size` \(48\)"),
        ({"time_step_min": 0.2}, r"`time_step_min` \(0.2\) must be above 0 and at most `time_step_max`"),
        ({"decay_min": 0}, r"`decay_min` \(0\) must be above 0"),
        ({"time_step_floor": -1.0}, "`time_step_floor` must not be negative"),
        ({"time_step_limit": [0.1]}, "`time_step_limit` must be two step sizes"),
        ({"time_step_limit": [0.2, 0.1]}, "`time_step_limit` must be two step sizes"),
        ({"norm": "batch"}, "`norm` must be 'rms_norm' or 'layer_norm'"),
    ],
    ids=str,
)
def test_impossible_sizes_are_named(given: dict, message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        NoriaMamba2Config(**{"hidden_size": 24} | given)


def test_an_infinite_bound_survives_its_file(tmp_path) -> None:
    NoriaMamba2Config(time_step_limit=(0.01, float("inf"))).save_pretrained(tmp_path)
    assert list(NoriaMamba2Config.from_pretrained(tmp_path).time_step_limit) == [0.01, float("inf")]


def test_parameters_begin_as_configured() -> None:
    torch.manual_seed(0)
    fields = {"time_step_min": 0.01, "time_step_max": 0.02, "decay_min": 2.0, "decay_max": 3.0, "head_dim": 1}
    mixer = NoriaMamba2Model(NoriaMamba2Config(**SIZES | {"hidden_size": 100} | fields)).layers[0].mixer
    steps, rates = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert steps.min() >= 0.01 * (1 - 1e-5)
    assert steps.max() <= 0.02 * (1 + 1e-5)
    assert rates.min() >= 2 * (1 - 1e-5)
    assert rates.max() <= 3 * (1 + 1e-5)
    assert steps.unique().numel() > 150
    assert rates.unique().numel() > 150
    assert (mixer.D == 1).all()
    assert (mixer.norm.weight == 1).all()


@torch.no_grad()
def test_numbers_of_the_recurrence_stay_in_float32(tmp_path) -> None:
    model = NoriaMamba2ForCausalLM(NoriaMamba2Config(**SIZES))
    model.save_pretrained(tmp_path)
    half = NoriaMamba2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float16).eval()
    wide = {name.rpartition(".")[2] for name, p in half.named_parameters() if p.dtype == torch.float32}
    assert wide == {"A_log", "D", "dt_bias"}
    outputs = half(torch.randint(31, (2, 20)), use_cache=True)
    assert outputs.logits.isfinite().all()
    assert outputs.logits.dtype == torch.float16
    assert all(part.dtype == torch.float32 for part in outputs.past_key_values.layers[0].state)
