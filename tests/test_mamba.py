"""What is Mamba's alone: how it begins, what stays in float32, both directions, and its configuration."""

import pytest
import torch
from architectures import TINY
from laws import packed, same, same_gradients
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu, softplus

from noria import NoriaMambaConfig, NoriaMambaForCausalLM, NoriaMambaForMaskedLM, NoriaMambaModel

WIDE = ("A_log", "mixer.D", "dt_bias")


def build(model_class=NoriaMambaForCausalLM, **fields):
    torch.manual_seed(0)
    return model_class(NoriaMambaConfig(**TINY | fields)).double().eval()


def written_out(mixer, x: Tensor, ahead: int = 0, back: bool = False) -> Tensor:
    """The mixer's equations on one row x (t d), token by token."""
    u, gate = linear(x, mixer.in_proj.weight, mixer.in_proj.bias).chunk(2, dim=-1)
    k = mixer.conv.kernel
    window = torch.nn.functional.pad(u, (0, 0, k - 1 - ahead, ahead))
    u = silu(torch.stack([(window[t : t + k].T * mixer.conv.weight).sum(1) for t in range(len(u))]) + mixer.conv.bias)
    low, into, out = (u @ mixer.x_proj.weight.T).split([mixer.rank, mixer.size, mixer.size], dim=-1)
    delta = softplus(low @ mixer.dt_proj.weight.T + mixer.dt_bias)

    def scan(order: list[int]) -> Tensor:
        state, rows = torch.zeros_like(mixer.A_log), {}
        for t in order:
            decay = torch.exp(-delta[t, :, None] * mixer.A_log.exp())
            state = decay * state + (delta[t] * u[t])[:, None] * into[t]
            rows[t] = state @ out[t] + mixer.D * u[t]
        return torch.stack([rows[t] for t in range(len(order))])

    order = list(range(len(u)))
    y = scan(order) + scan(order[::-1]) if back else scan(order)
    return linear(y * silu(gate), mixer.out_proj.weight, mixer.out_proj.bias)


@torch.no_grad()
@pytest.mark.parametrize("kernel", [2, 4, 5])
@pytest.mark.parametrize("back", [False, True], ids=["causal", "both"])
def test_the_equations(back, kernel, tokens):
    model = build(NoriaMambaModel, bidirectional=back, conv_kernel=kernel)
    ids = tokens(1, 11)
    x = model.embed_tokens(ids)[0]
    for layer in model.layers:
        normed = rms_norm(x, (24,), layer.mixer_norm.weight, 1e-5)
        x = x + written_out(layer.mixer, normed, kernel // 2 if back else 0, back)
    same(model(ids).last_hidden_state[0], rms_norm(x, (24,), model.norm.weight, 1e-5))


def test_a_fresh_model_begins_as_published():
    torch.manual_seed(0)
    model = NoriaMambaModel(NoriaMambaConfig(**TINY | {"hidden_size": 96, "initializer_range": 0.02}))
    for layer in model.layers:
        mixer = layer.mixer
        torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17.0).expand(192, 16))
        assert mixer.D.eq(1).all()
        steps = softplus(mixer.dt_bias)
        assert 0.00099 < steps.min() < 0.002
        assert 0.05 < steps.max() < 0.101
        assert abs(steps.log().mean() - torch.tensor([0.001, 0.1]).log().mean()) < 0.35
        assert mixer.dt_proj.weight.abs().max() <= 6**-0.5
        assert abs(mixer.out_proj.weight.std() - 0.02 / 2**0.5) < 0.001
        assert mixer.conv.weight.abs().max() <= 0.5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rates_and_the_residual_stream_stay_in_float32(dtype, tmp_path, tokens):
    build().float().save_pretrained(tmp_path)
    model = NoriaMambaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.endswith(WIDE) else dtype), name
    outputs = model.model(tokens(1, 9), output_hidden_states=True)
    assert outputs.last_hidden_state.dtype == dtype
    assert {x.dtype for x in outputs.hidden_states[:-1]} == {torch.float32}
    model.config.residual_in_fp32 = False
    assert {x.dtype for x in model.model(tokens(1, 9), output_hidden_states=True).hidden_states} == {dtype}


def test_strong_steps_lose_nothing(tokens):
    """Steps of 5 and more, at which a scan by cumulative sums of logarithms would overflow."""
    model, ids = build(num_hidden_layers=1), tokens(1, 130)
    with torch.no_grad():
        model.model.layers[0].mixer.dt_bias.fill_(8.0)
        exact = model(ids).logits
        same(model.float()(ids).logits.double(), exact, 1e-4)


def test_both_directions_keep_packed_sequences_apart(tokens):
    model, rows = build(NoriaMambaForMaskedLM), [tokens(1, n, n)[0] for n in (5, 1, 8, 2)]
    ids, positions = packed(rows)
    found = model(ids, position_ids=positions).logits[0]
    same(found, torch.cat([model(row[None]).logits[0] for row in rows]))


def test_both_directions_see_no_padding(tokens):
    model, row = build(NoriaMambaForMaskedLM), tokens(1, 7)
    places = torch.tensor([1, 2, 4, 5, 6, 9, 11])
    ids, mask = torch.full((1, 13), 9), torch.zeros(1, 13, dtype=torch.int64)
    ids[0, places], mask[0, places] = row[0], 1
    same(model(ids, attention_mask=mask).logits[:, places], model(row).logits)


def test_gradients_reach_a_carried_state(tokens):
    model, ids = build(), tokens(2, 24)

    def train(parts: list[Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        cache, total = None, 0.0
        for part in parts:
            outputs = model(part, past_key_values=cache, use_cache=True)
            cache, total = outputs.past_key_values, total + outputs.logits.square().sum()
        total.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    same_gradients(train(list(ids.split([2, 13, 1, 8], dim=1))), train([ids]), 1e-10)


def test_sizes_are_derived():
    config = NoriaMambaConfig(hidden_size=50)
    assert (config.inner_size, config.time_step_rank) == (100, 4)
    assert NoriaMambaConfig(hidden_size=50, expand=1.5).inner_size == 75


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conv_kernel": 0}, "`conv_kernel` must be at least 1, not 0"),
        ({"state_size": 0}, "`state_size` must be at least 1"),
        ({"time_step_min": 0.2}, r"`time_step_min` \(0.2\) must be above 0 and at most `time_step_max` \(0.1\)"),
        ({"time_step_floor": -1.0}, "`time_step_floor` must not be negative"),
        ({"norm": "batch_norm"}, "`norm` must be 'rms_norm' or 'layer_norm', not 'batch_norm'"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(Exception, match=message) as caught:
        NoriaMambaConfig(**fields)
    assert isinstance(caught.value, ValueError) or isinstance(caught.value.__cause__, ValueError)
