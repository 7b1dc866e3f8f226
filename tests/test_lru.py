"""The linear recurrent unit: its ring of eigenvalues, its precision near the unit circle, batch norm, pooling."""

import math

import pytest
import torch
from architectures import TINY
from huggingface_hub.errors import StrictDataclassError
from laws import cuts, packed, ragged, same
from torch import nn

from noria import NoriaLRUConfig, NoriaLRUForCausalLM, NoriaLRUForSequenceClassification, NoriaLRUModel
from noria.modeling.batch_norm import TokenBatchNorm
from noria.modeling.mixers.lru import LRU
from noria.modeling.ops.dispatch import forced_form
from noria.modeling.state import Context


def unit(dtype: torch.dtype = torch.float64, **fields) -> LRU:
    torch.manual_seed(0)
    unit = LRU(NoriaLRUConfig(**{"vocab_size": 0, "hidden_size": 24, "num_hidden_layers": 1} | fields))
    unit.initialize(0.02)
    return unit.to(dtype)


def whole(x: torch.Tensor, **fields) -> Context:
    return Context(torch.arange(x.shape[1])[None], **fields)


@pytest.mark.parametrize(("least", "most", "phase"), [(0.0, 1.0, 6.28), (0.4, 0.9, 1.0), (0.999, 0.9999, 0.1)])
def test_eigenvalues_fill_a_ring_evenly(least, most, phase):
    eigenvalues = unit(state_size=4000, r_min=least, r_max=most, max_phase=phase).eigenvalues()
    radius, angle = eigenvalues.abs(), eigenvalues.angle() % (2 * math.pi)
    assert least <= radius.min() < radius.max() < most + 1e-9
    assert angle.max() <= phase + 1e-9
    area = (radius.square() - least**2) / (most**2 - least**2)
    for values, end in ((area, 1.0), (angle, phase)):
        quartiles = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)) / end
        torch.testing.assert_close(quartiles, torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype), rtol=0, atol=0.04)


@pytest.mark.parametrize("nu", [-30.0, 0.0, 3.0, 80.0])
def test_eigenvalues_stay_in_the_unit_circle(nu):
    lru = unit(torch.float32)
    nn.init.constant_(lru.nu_log, nu)
    assert lru.eigenvalues().abs().max() < 1


@torch.no_grad()
@pytest.mark.parametrize("ring", [(0.0, 1.0), (0.9, 0.99)])
def test_white_inputs_keep_the_state_at_unit_size(ring):
    lru = unit(torch.float32, state_size=64, r_min=ring[0], r_max=ring[1])
    _, (state,) = lru(torch.randn(200, 600, 24), Context(torch.arange(600)[None]))
    assert state.square().sum(-1).mean().item() == pytest.approx(1, abs=0.1)


@torch.no_grad()
@pytest.mark.parametrize("ring", [(0.0, 1.0), (0.9, 0.999), (0.9999, 0.99999)])
@pytest.mark.parametrize("padded", [False, True])
def test_long_memories_do_not_compound_the_rounding_of_lambda(ring, padded):
    """Against float64 with the same parameters; a plain recurrence in complex64 is off by 6e-5 at the last ring."""
    lru, length = unit(torch.float32, r_min=ring[0], r_max=ring[1]), 8192
    x = torch.randn(1, length, 24)
    mask = torch.rand(1, length) < 0.7 if padded else None
    found, (state,) = lru(x, whole(x, mask=mask))
    expected, (last,) = lru.double()(x.double(), whole(x, mask=mask))
    same(found.double(), expected, 2e-6)
    same(state.double(), last, 2e-6)


@torch.no_grad()
def test_decoding_does_not_compound_it_either():
    lru = unit(torch.float32, r_min=0.9999, r_max=0.99999)
    x, state = torch.randn(1, 600, 24), None
    for token in x.split(1, dim=1):
        _, state = lru(token, whole(token), state)
    _, (last,) = lru.double()(x.double(), whole(x))
    same(state[0].double(), last, 2e-6)


@pytest.mark.parametrize("form", ["sequential", "chunkwise", "fast"])
def test_it_is_the_recurrence_of_the_paper(form):
    """Read aloud with dense complex matrices, and its gradient."""
    lru, x = unit(use_bias=True), torch.randn(2, 9, 24, dtype=torch.float64)
    n, lam, gamma = lru.size, lru.eigenvalues(), lru.gamma_log.exp()
    B = torch.complex(lru.in_proj.weight[:n], lru.in_proj.weight[n:]) * gamma[:, None]
    b = torch.complex(lru.in_proj.bias[:n], lru.in_proj.bias[n:]) * gamma
    C = torch.complex(lru.out_proj.weight[:, :n], -lru.out_proj.weight[:, n:])
    h, outputs = torch.zeros(2, n, dtype=torch.complex128), []
    for token in x.unbind(1):
        h = lam * h + token.to(B.dtype) @ B.mT + b
        outputs.append((h @ C.mT).real + lru.out_proj.bias + lru.D * token)
    expected = torch.stack(outputs, 1)
    with forced_form(form):
        found, (state,) = lru(x, whole(x))
    same(found, expected)
    same(state, torch.view_as_real(h))
    for parameter in lru.parameters():
        one, other = (
            torch.autograd.grad(y.square().sum(), parameter, retain_graph=True)[0] for y in (found, expected)
        )
        same(one, other)


@torch.no_grad()
def test_gamma_may_stand_behind_the_recurrence():
    """The other convention: interleaved parts going in, gamma on the state, both parts side by side coming out."""
    lru, x = unit(use_bias=True, direct_term=False), torch.randn(1, 7, 24, dtype=torch.float64)
    n = lru.size
    interleave = torch.arange(2 * n).reshape(2, n).mT.reshape(-1)
    kernel, bias = lru.in_proj.weight[interleave], lru.in_proj.bias[interleave]
    u = nn.functional.linear(x, kernel, bias)
    h, outputs = torch.zeros(1, n, dtype=torch.complex128), []
    for real, imaginary in zip(u[..., ::2].unbind(1), u[..., 1::2].unbind(1), strict=True):
        h = lru.eigenvalues() * h + torch.complex(real, imaginary)
        scaled = h * lru.gamma_log.exp()
        outputs.append(lru.out_proj(torch.cat((scaled.real, scaled.imag), -1)))
    same(lru(x, whole(x))[0], torch.stack(outputs, 1))


def rows(tokens) -> list[torch.Tensor]:
    return [tokens(1, length, length)[0] for length in (3, 8, 5)]


def batch_normed(head=NoriaLRUForCausalLM, **fields):
    torch.manual_seed(0)
    model = head(NoriaLRUConfig(**TINY | {"norm": "batch_norm"} | fields)).double().eval()
    for norm in model.modules():
        if isinstance(norm, TokenBatchNorm):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model


@torch.no_grad()
@pytest.mark.parametrize("prenorm", [False, True])
def test_batch_norm_keeps_the_laws_after_training(prenorm, tokens):
    model, sequences = batch_normed(prenorm=prenorm), rows(tokens)
    alone = [model(row[None]).logits[0] for row in sequences]
    for side in ("left", "right"):
        ids, mask = ragged(sequences, side)
        logits = model(ids, attention_mask=mask).logits
        for found, real, expected in zip(logits, mask.bool(), alone, strict=True):
            same(found[real], expected)
    ids, positions = packed(sequences)
    same(model(ids, position_ids=positions).logits[0], torch.cat(alone))
    cache, logits = None, []
    for piece in sequences[1].split(cuts(8, 0)):
        outputs = model(piece[None], past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        logits.append(outputs.logits[0])
    same(torch.cat(logits), alone[1])


def test_batch_norm_measures_real_tokens_alone():
    norm = TokenBatchNorm(5, 1e-5, 0.9).double()
    norm.initialize(0.02)
    x, mask = torch.randn(3, 7, 5, dtype=torch.float64) * 2 + 1, torch.rand(3, 7) < 0.6
    reference = nn.BatchNorm1d(5, eps=1e-5, momentum=0.1).double()
    same(norm(x, mask)[mask], reference(x[mask]))
    count = int(mask.sum())
    same(norm.running_mean, reference.running_mean)
    same(norm.running_var - 0.9, (reference.running_var - 0.9) * (count - 1) / count)
    same(norm.eval()(x), (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt())


def test_batch_norm_is_saved_and_follows_training(tmp_path, tokens):
    model = batch_normed(prenorm=False).train()
    before = model.model.layers[0].mixer_norm.running_mean.clone()
    model(tokens(2, 6)).logits.sum().backward()
    assert not torch.equal(model.model.layers[0].mixer_norm.running_mean, before)
    model.eval().save_pretrained(tmp_path)
    loaded = NoriaLRUForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(loaded(tokens(2, 6)).logits, model(tokens(2, 6)).logits)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling(pooling, side, tokens):
    model = batch_normed(NoriaLRUForSequenceClassification, pooling=pooling, num_labels=4)
    ids, mask = ragged(rows(tokens), side)
    x, real = model.model(ids, attention_mask=mask).last_hidden_state, mask.bool()
    logits = model(ids, attention_mask=mask).logits
    for found, states, kept in zip(logits, x, real, strict=True):
        read = {"mean": states[kept].mean(0), "last": states[kept][-1], "none": states}[pooling]
        same(found, model.score(read))


def test_every_token_may_have_a_label(tokens):
    model = batch_normed(NoriaLRUForSequenceClassification, pooling="none", num_labels=4)
    labels = torch.randint(4, (2, 6))
    labels[0, 3:] = -100
    outputs = model(tokens(2, 6), labels=labels)
    assert outputs.logits.shape == (2, 6, 4)
    expected = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
    same(outputs.loss, expected, 2e-6)


def test_inputs_of_another_width():
    config = NoriaLRUConfig(vocab_size=0, input_size=3, hidden_size=8, num_hidden_layers=1)
    model, x = NoriaLRUModel(config), torch.randn(2, 5, 3)
    assert model(inputs_embeds=x).last_hidden_state.shape == (2, 5, 8)
    with pytest.raises(ValueError, match="no embedding"):
        model(torch.ones(2, 5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state_size": 0}, "`state_size` must be at least 1, not 0"),
        ({"r_min": 0.9, "r_max": 0.5}, r"`r_min` \(0.9\) and `r_max` \(0.5\) must keep"),
        ({"r_max": 1.5}, "must keep 0 <= r_min < r_max <= 1"),
        ({"max_phase": 0}, "`max_phase` must be positive, not 0"),
        ({"norm": "group"}, "`norm` must be one of layer_norm, rms_norm, batch_norm, not 'group'"),
        ({"norm_momentum": 1}, "`norm_momentum` must be at least 0 and below 1, not 1"),
        ({"pooling": "max"}, "`pooling` must be one of mean, last, none, not 'max'"),
        ({"input_size": 3}, r"`input_size` \(3\) belongs to `vocab_size` 0"),
        ({"input_size": 0, "vocab_size": 0}, "`input_size` must be at least 1, not 0"),
    ],
)
def test_wrong_values_are_named(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        NoriaLRUConfig(**fields)
