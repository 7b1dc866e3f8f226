"""Rotary positions by their definitions: layouts, frequencies, decay, xPos, log n scaling, and models with them."""

import math

import pytest
import torch
import torch.nn.functional as F
from architectures import TINY
from laws import cuts, packed, ragged, same
from torch import Tensor
from torch.export import Dim, export
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from noria import NoriaRoFormerConfig, NoriaRoFormerForCausalLM, NoriaRoFormerForMaskedLM
from noria.modeling.position.base import PositionEncoding
from noria.modeling.position.log_scaling import LogScaling, count_seen, log_scale
from noria.modeling.position.rotary import Rotary, make_angles, rotate_pairs
from noria.modeling.position.rotary_half import RotaryHalf, halves_to_pairs, pairs_to_halves
from noria.modeling.position.rotary_trainable import RotaryTrainable
from noria.modeling.position.xpos import XPos
from noria.modeling.rope_scaling import FrequenciesByLength, scale_rope
from noria.modeling.state import Context

PAIRS = 6  # of channels in a head of the models below
SCALINGS = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 3.3},
    "yarn": {"factor": 4.0},
    "longrope": {"factor": 4.0, "short_factor": [1.0] * PAIRS, "long_factor": [1.5, 2.0, 2.0, 3.0, 3.5, 4.0]},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 7},
}
CONSTANT = ["linear", "yarn", "llama3"]
KINDS = ["rotary", "rotary_half", "rotary_trainable", "xpos"]


def scaling(kind: str, **more) -> dict:
    return {"rope_type": kind, "rope_theta": 100.0} | SCALINGS[kind] | more


def make_model(head=NoriaRoFormerForCausalLM, dtype=torch.float64, **fields):
    torch.manual_seed(0)
    fields = {"num_attention_heads": 2, "norm_eps": 1e-6, "max_position_embeddings": 8} | fields
    return head(NoriaRoFormerConfig(**TINY | fields)).to(dtype).eval()


def places(*positions: int) -> Context:
    context = Context(torch.tensor([positions]))
    context.key_positions = context.positions
    return context


def block_matrix(position: int, dim: int, base: float = 10000.0) -> Tensor:
    """R_m of equation 34, written out (d d)."""
    angles = position * base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    blocks = [torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]], dtype=torch.float64) for a in angles]
    return torch.block_diag(*blocks)


def strided(shape: tuple[int, ...], how: str) -> Tensor:
    """Numbers (b h t d) that lie in memory as (b t h d), as (b h d t), or one place off."""
    b, h, t, d = shape
    if how == "heads inside":
        return torch.randn(b, t, h, d, dtype=torch.float64).transpose(1, 2)
    if how == "time inside":
        return torch.randn(b, h, d, t, dtype=torch.float64).mT
    return torch.randn(b * h * t * d + 1, dtype=torch.float64)[1:].view(shape)


@pytest.mark.parametrize("how", ["heads inside", "time inside", "one off"])
def test_it_is_the_block_matrix_however_x_lies_in_memory(how):
    x, positions = strided((2, 3, 5, 8), how), torch.tensor([[0, 1, 2, 7, 500]])
    angles = make_angles(positions, Rotary(8).frequencies(x.device), x.dtype)
    found = rotate_pairs(x, angles)
    for place, position in enumerate(positions[0].tolist()):
        same(found[:, :, place], x[:, :, place] @ block_matrix(position, 8).T, 1e-12)
    same(rotate_pairs(x, angles._replace(turns=None)), found, 1e-14)
    same(found.norm(dim=-1), x.norm(dim=-1), 1e-14)


def test_heads_that_lie_inside_stay_there():
    x = strided((2, 3, 5, 8), "heads inside")
    q, _ = Rotary(8).rotate(x, x, places(*range(5)))
    assert q.stride() == x.stride(), "attention reads what the rotation wrote without another copy"


@pytest.mark.parametrize("kind", [Rotary, RotaryHalf, XPos])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_kept_and_angles_are_wide(kind, dtype):
    q = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    context = places(65533, 65534, 65535)
    exact = kind(8).rotate(q, q, places(65533, 65534, 65535))[0]
    found = kind(8).rotate(q.to(dtype), q.to(dtype), context)[0]
    assert found.dtype == dtype
    same(found.double(), exact, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", [Rotary, RotaryHalf, RotaryTrainable, XPos])
def test_channels_come_in_pairs(kind):
    with pytest.raises(ValueError, match="the head size must be even, not 7"):
        kind(7)
    with pytest.raises(ValueError, match="an even number from 2 to 8 can be turned, not 3"):
        kind(8, rotated=3)
    with pytest.raises(ValueError, match="not 10"):
        kind(8, rotated=10)


@pytest.mark.parametrize("kind", [Rotary, RotaryHalf, XPos])
def test_part_of_a_head_is_turned_as_a_smaller_head(kind):
    x, context = torch.randn(1, 2, 5, 8, dtype=torch.float64), places(*range(5))
    part, small = kind(8, rotated=4), kind(4)
    for hook in ("rotate", "scale"):
        found, expected = (getattr(p, hook)(y, y, context) for p, y in ((part, x), (small, x[..., :4])))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one[..., 4:], x[..., 4:])
            same(one[..., :4], other, 1e-14)


@pytest.mark.parametrize("kind", [Rotary, RotaryHalf])
def test_values_are_turned_where_asked_for(kind):
    v, context = torch.randn(1, 2, 3, 8, dtype=torch.float64), places(4, 5, 6)
    assert kind(8).turn(v, context) is v
    assert torch.equal(kind(8, values=True).turn(v, context), kind(8).rotate(v, v, context)[0])


# Layouts


@pytest.mark.parametrize("rotated", [None, 6])
def test_layouts_differ_by_a_permutation(rotated):
    rows, x = torch.randn(2 * 8, 5, dtype=torch.float64), torch.randn(1, 4, 5, dtype=torch.float64)
    context = places(0, 3, 4, 900)

    def turned(kind, w: Tensor) -> Tensor:
        q = (x @ w.T).unflatten(-1, (2, 8)).transpose(1, 2)
        return kind(8, rotated=rotated).rotate(q, q, context)[0]

    halves = turned(RotaryHalf, pairs_to_halves(rows, 2, rotated))
    same(halves @ halves.mT, (pairs := turned(Rotary, rows)) @ pairs.mT, 1e-14)
    same(pairs_to_halves(pairs[0].mT.flatten(0, 1), 2, rotated), halves[0].mT.flatten(0, 1), 1e-14)
    assert torch.equal(halves_to_pairs(pairs_to_halves(rows, 2, rotated), 2, rotated), rows)
    assert torch.equal(pairs_to_halves(rows[:, 0], 2, rotated), pairs_to_halves(rows, 2, rotated)[:, 0])


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_model_changes_its_layout(factor, tokens):
    rope = {"rope_theta": 100.0, "partial_rotary_factor": factor}
    model = make_model(NoriaRoFormerForMaskedLM, rope_parameters=dict(rope))
    other = make_model(NoriaRoFormerForMaskedLM, rope_parameters=dict(rope), position_encoding="rotary_half")
    weights = model.state_dict()
    for name in weights:
        if "q_proj" in name or "k_proj" in name:
            weights[name] = pairs_to_halves(weights[name], 2, int(12 * factor))
    mixed = other(tokens(2, 9)).logits
    other.load_state_dict(weights)
    expected = model(tokens(2, 9)).logits
    same(other(tokens(2, 9)).logits, expected, 1e-12)
    assert (mixed - expected).abs().max() > 0.01, "a layout taken for the other goes unnoticed"


def test_rows_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="15 rows cannot be split into 2 heads"):
        pairs_to_halves(torch.randn(15, 3), 2)
    with pytest.raises(ValueError, match="of 8 channels an even number from 2 to 8 can be turned, not 5"):
        halves_to_pairs(torch.randn(16, 3), 2, rotated=5)


# What models make of it


@pytest.mark.parametrize("attention", ["softmax", "linear"])
@pytest.mark.parametrize("head", [NoriaRoFormerForCausalLM, NoriaRoFormerForMaskedLM])
@pytest.mark.parametrize("kind", KINDS)
def test_distances_alone_count(kind, head, attention, tokens):
    if kind == "xpos" and (attention == "linear" or head is NoriaRoFormerForMaskedLM):
        pytest.skip("xPos is for causal softmax attention")
    model, ids = make_model(head, position_encoding=kind, attention=attention), tokens(2, 9)
    here = model(ids).logits
    same(model(ids, position_ids=torch.arange(9)[None] + 1000).logits, here, 1e-12)
    assert (model(ids, position_ids=torch.arange(9)[None] * 3).logits - here).abs().max() > 1e-3


@pytest.mark.parametrize("log_scaling", [False, True])
@pytest.mark.parametrize("rope", [None, *SCALINGS])
@pytest.mark.parametrize("kind", KINDS)
def test_cutting_and_padding_change_nothing(kind, rope, log_scaling, tokens):
    if rope in ("dynamic", "longrope") and kind in ("rotary_trainable", "xpos"):
        pytest.skip("frequencies that depend on the length are for fixed rotations")
    fields = {"position_encoding": kind, "log_scaling": log_scaling, "rope_parameters": rope and scaling(rope)}
    model, ids = make_model(**fields), tokens(2, 20)
    expected, cache, found = model(ids, use_cache=False).logits, None, []
    for piece in ids.split(cuts(20, seed=3), dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache, found = output.past_key_values, [*found, output.logits]
    same(torch.cat(found, dim=1), expected)
    for side in ("left", "right"):
        batch, mask = ragged([ids[0], ids[1, :13]], side)
        logits = model(batch, attention_mask=mask, use_cache=False).logits
        same(logits[1][mask[1].bool()], expected[1, :13])
    row, positions = packed([ids[1, :13], ids[0]])
    same(model(row, position_ids=positions, use_cache=False).logits[0, 13:], expected[0])


@pytest.mark.parametrize("log_scaling", [False, True])
@pytest.mark.parametrize("rope", [None, *SCALINGS])
def test_encoders_read_each_row_by_its_own_length(rope, log_scaling, tokens):
    fields = {"log_scaling": log_scaling, "rope_parameters": rope and scaling(rope)}
    model, ids = make_model(NoriaRoFormerForMaskedLM, **fields), tokens(2, 20)
    long, short = model(ids[:1]).logits[0], model(ids[1:, :6]).logits[0]
    for side in ("left", "right"):
        batch, mask = ragged([ids[0], ids[1, :6]], side)
        logits = model(batch, attention_mask=mask).logits
        same(logits[0], long)
        same(logits[1][mask[1].bool()], short)
    row, positions = packed([ids[1, :6], ids[0]])
    logits = model(row, position_ids=positions).logits[0]
    same(logits[:6], short)
    same(logits[6:], long)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_a_step_is_what_transformers_turns_by_at_that_length(rope, tokens):
    """Of one layer the last token's logits are those of all keys turned by the frequencies of the whole length."""
    model, ids = make_model(num_hidden_layers=1, rope_parameters=scaling(rope)), tokens(1, 15)
    found, by_length = model(ids).logits[0, -1], model.model.layers[0].mixer.position.by_length
    frequencies = by_length(torch.tensor([[15]]))[0, 0].tolist()
    factor = model.model.layers[0].mixer.position.inner.factor
    plain = make_model(num_hidden_layers=1, rope_parameters={"rope_theta": 100.0})
    assert (plain(ids).logits[0, -1] - found).abs().max() > 1e-3
    plain.model.layers[0].mixer.position.take(frequencies, factor)
    same(plain(ids).logits[0, -1], found)


@pytest.mark.parametrize("kind", ["rotary", "rotary_half"])
def test_generate_with_a_cache_is_generate_without(kind, tokens):
    model = make_model(position_encoding=kind, rope_parameters=scaling("dynamic"), log_scaling=True)
    options = {"max_new_tokens": 9, "do_sample": False}
    expected = model.generate(tokens(2, 5), use_cache=False, **options)
    assert torch.equal(model.generate(tokens(2, 5), **options), expected)
    static = model.generate(tokens(2, 5), cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(static, expected)


@pytest.mark.parametrize("rope", [None, "dynamic", "longrope"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph(kind, rope, tokens):
    if rope and kind in ("rotary_trainable", "xpos"):
        pytest.skip("frequencies that depend on the length are for fixed rotations")
    torch._dynamo.reset()
    fields = {"num_hidden_layers": 1, "log_scaling": True, "rope_parameters": rope and scaling(rope)}
    model = make_model(position_encoding=kind, **fields)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    same(compiled(tokens(2, 11), use_cache=False).logits, model(tokens(2, 11), use_cache=False).logits)


@pytest.mark.parametrize(("kind", "rope"), [("rotary", "dynamic"), ("rotary_half", None), ("xpos", None)])
def test_an_exported_program_takes_any_length(kind, rope, tokens):
    fields = {"num_hidden_layers": 1, "log_scaling": True, "rope_parameters": rope and scaling(rope)}
    model = make_model(position_encoding=kind, **fields)
    shapes = {"input_ids": {1: Dim("t", min=2, max=4096)}, "use_cache": None}
    program = export(model, (), {"input_ids": tokens(2, 11), "use_cache": False}, dynamic_shapes=shapes)
    same(program.module()(input_ids=tokens(2, 19), use_cache=False).logits, model(tokens(2, 19)).logits)


def test_values_of_a_model_are_turned(tokens):
    model = make_model(rotary_value=True)
    plain = make_model()
    assert (model(tokens(1, 9)).logits - plain(tokens(1, 9)).logits).abs().max() > 1e-3
    with pytest.raises(ValueError, match="values=True"):
        make_model(rotary_value=True, rope_parameters=scaling("dynamic"))


# Frequencies


def llama(rope: dict) -> LlamaRotaryEmbedding:
    sizes = {"hidden_size": 24, "num_attention_heads": 2, "max_position_embeddings": 8}
    return LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=dict(rope)))


@pytest.mark.parametrize("rope", CONSTANT)
def test_constant_frequencies_are_those_of_transformers(rope):
    config = NoriaRoFormerConfig(**TINY | {"num_attention_heads": 2, "max_position_embeddings": 8})
    config.rope_parameters = llama(scaling(rope)).config.rope_parameters
    position, peer = scale_rope(RotaryHalf(12), config), llama(scaling(rope))
    assert torch.equal(position.frequencies(torch.device("cpu")).float(), peer.inv_freq)
    q, k = torch.randn(2, 1, 2, 20, 12)
    context = places(*range(20))
    expected = apply_rotary_pos_emb(q, k, *peer(q, context.positions))
    for one, other in zip(position.rotate(q, k, context), expected, strict=True):
        same(one, other, 1e-6)


@pytest.mark.parametrize("length", [5, 8, 9, 20, 1000])
@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_frequencies_by_length_are_those_of_transformers(rope, length):
    peer, position = llama(scaling(rope)), torch.tensor([[length - 1]])
    peer(torch.zeros(1), position)
    found = FrequenciesByLength(peer.config)(torch.tensor([[length, 3]]))
    same(found[0, 0].float(), peer.inv_freq, 1e-6)
    assert torch.equal(found[0, 1].float(), llama(scaling(rope)).inv_freq), "a short text keeps its frequencies"
    model = make_model(rope_parameters=scaling(rope))
    assert model.model.layers[0].mixer.position.inner.factor == pytest.approx(peer.attention_scaling, rel=1e-12)


def test_default_frequencies_need_no_rounding_to_float32():
    same(Rotary(12, 100.0).frequencies(torch.device("cpu")).float(), llama({"rope_theta": 100.0}).inv_freq, 2e-7)


def test_proportional_scaling_leaves_the_slow_pairs_alone(tokens):
    model = make_model(rope_parameters={"rope_type": "proportional", "partial_rotary_factor": 0.5})
    frequencies = model.model.layers[0].mixer.position.frequencies(torch.device("cpu"))
    assert len(frequencies) == PAIRS
    assert frequencies[:3].min() > 0
    assert torch.equal(frequencies[3:], torch.zeros(3, dtype=frequencies.dtype))


def test_what_cannot_be_scaled_is_named():
    with pytest.raises(ValueError, match=r"unknown `rope_type` 'cubic': choose from \['default', 'dynamic'"):
        make_model(rope_parameters={"rope_type": "cubic"})
    with pytest.raises(ValueError, match="not XPos"):
        make_model(position_encoding="xpos", rope_parameters=scaling("dynamic"))
    with pytest.raises(ValueError, match="not RotaryTrainable"):
        make_model(position_encoding="rotary_trainable", rope_parameters=scaling("longrope"))
    rope = {"rope_type": "proportional", "partial_rotary_factor": 0.5}
    with pytest.raises(ValueError, match="3 trainable frequencies cannot begin as 6 others"):
        make_model(position_encoding="rotary_trainable", rope_parameters=rope)
    with pytest.raises(ValueError, match="2 to 12 can be turned, not 3"):
        make_model(rope_parameters={"rope_theta": 100.0, "partial_rotary_factor": 0.25})
    with pytest.raises(ValueError, match="dynamic scaling takes at least 4 channels to turn, not 2"):
        make_model(rope_parameters=scaling("dynamic", partial_rotary_factor=0.2))
    with pytest.raises(ValueError, match="20 frequencies do not fit a head of 4 pairs"):
        Rotary(8).take([1.0] * 20)


def test_trainable_frequencies_begin_as_the_fixed_ones_and_learn(tokens):
    rope = scaling("yarn")
    model = make_model(position_encoding="rotary_trainable", rope_parameters=dict(rope))
    fixed = make_model(rope_parameters=dict(rope))
    fixed.load_state_dict({name: w for name, w in model.state_dict().items() if "log_ratio" not in name})
    assert torch.equal(model(tokens(2, 9)).logits, fixed(tokens(2, 9)).logits)
    model(tokens(2, 9), labels=tokens(2, 9)).loss.backward()
    learned = [layer.mixer.position.log_ratio.weight for layer in model.model.layers]
    assert len(learned) == 2
    for ratio in learned:
        assert ratio.grad.abs().min() > 0
        ratio.data.fill_(-50.0)
    assert model.model.layers[0].mixer.position.frequencies(torch.device("cpu")).min() > 0


def test_gradients_of_frequencies_and_rotations():
    position, context = RotaryTrainable(4).double(), places(0, 1, 5)
    position.initialize(0.02)
    q = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def turned(q: Tensor, ratio: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(position, {"log_ratio.weight": ratio}, (q, context))

    position.forward = lambda q, context: position.rotate(q, q * 2, context)
    ratio = torch.tensor([0.1, -0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(turned, (q, ratio))
    for fixed in (Rotary(4), RotaryHalf(4)):
        assert torch.autograd.gradgradcheck(lambda q, fixed=fixed: fixed.rotate(q, q, context)[0], (q,))


def test_trainable_frequencies_come_back_from_a_file(tmp_path):
    model = make_model(position_encoding="rotary_trainable", dtype=torch.float32)
    model.model.layers[1].mixer.position.log_ratio.weight.data.normal_()
    model.save_pretrained(tmp_path)
    other = NoriaRoFormerForCausalLM.from_pretrained(tmp_path)
    for one, two in zip(model.model.layers, other.model.layers, strict=True):
        assert torch.equal(one.mixer.position.log_ratio.weight, two.mixer.position.log_ratio.weight)


# Long-range decay (arXiv:2104.09864, section 3.4.3)


def partial_sums(distances: Tensor, dim: int) -> Tensor:
    """S_j = sum of e^(i m theta_i) over i < j, for j = 1 .. d/2, (m d/2) complex."""
    angles = distances[:, None] * Rotary(dim).frequencies(distances.device)
    return torch.polar(torch.ones_like(angles), angles).cumsum(dim=1)


def decay(distances: Tensor, dim: int) -> Tensor:
    return partial_sums(distances, dim).abs().mean(dim=1)


def test_the_bound_of_the_decay_has_its_published_values():
    found = decay(torch.tensor([0, 1, 4, 16, 64, 128, 256]), 128)
    expected = torch.tensor([32.5, 31.54, 22.60, 15.78, 10.09, 9.27, 6.54], dtype=torch.float64)
    assert (found - expected).abs().max() < 0.006


def test_the_decay_has_an_envelope_that_falls_up_to_256_and_is_not_monotone():
    curve = decay(torch.arange(257), 128)
    peaks = torch.stack([curve[2**k : 2 ** (k + 1)].max() for k in range(8)])
    assert (peaks.diff() < 0).all()
    assert (curve.diff() > 0).sum() == 115


def test_scores_stay_below_the_bound():
    q, k = torch.randn(2, 50, 64, dtype=torch.float64)
    products = torch.view_as_complex(q.unflatten(-1, (-1, 2))).conj() * torch.view_as_complex(k.unflatten(-1, (-1, 2)))
    steps = F.pad(products, (0, 1)).diff(dim=1).abs().amax(dim=1)
    for distance in (0, 1, 10, 100, 1000):
        score = (q[:, None] @ block_matrix(distance, 64) @ k[..., None]).squeeze().abs()
        assert (score <= steps * partial_sums(torch.tensor([distance]), 64).abs().sum() + 1e-9).all()


def test_only_an_arithmetic_phase_makes_distances_count():
    """phase(m) - phase(n) = g(m - n) for all m, n: its solutions are a constant and multiples of m, and no others."""
    n = 8
    rows = torch.zeros(n * n, n + 2 * n - 1, dtype=torch.float64)  # phase(0 .. n-1), then g(-(n-1) .. n-1)
    for row, (a, b) in enumerate((a, b) for a in range(n) for b in range(n)):
        rows[row, a] += 1
        rows[row, b] -= 1
        rows[row, n + a - b + n - 1] -= 1
    constant = torch.cat((torch.ones(n), torch.zeros(2 * n - 1))).double()
    linear = torch.cat((torch.arange(n), torch.arange(-n + 1, n))).double()
    assert (rows @ torch.stack((constant, linear), dim=1)).abs().max() == 0
    assert torch.linalg.matrix_rank(rows) == rows.shape[1] - 2


# xPos


def test_xpos_is_its_equation():
    q, k = torch.randn(2, 1, 1, 40, 8, dtype=torch.float64)
    position, positions = XPos(8, scale_base=16.0), torch.arange(40) + 7
    left, right = position.scale(*position.rotate(q, k, context := places(*positions.tolist())), context)
    found, zeta = (left @ right.mT)[0, 0], (torch.arange(4, dtype=torch.float64) / 4 + 0.4) / 1.4
    for n, m in ((0, 0), (5, 2), (39, 0), (39, 38), (20, 11)):
        fading = torch.diag((zeta ** ((n - m) / 16)).repeat_interleave(2))
        same(found[n, m], q[0, 0, n] @ fading @ block_matrix(m - n, 8) @ k[0, 0, m], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xpos_reads_65536_keys(dtype):
    """One query at the end of a cache, and a call of 30,000 tokens, in which no masked score overflows either."""
    torch.manual_seed(1)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 65536, 16)
    context = Context(torch.tensor([[65535]]))
    context.key_positions = torch.arange(65536)[None]
    position = XPos(16)
    wide = position.scale(q.double(), k.double(), Context(context.positions, key_positions=context.key_positions))
    left, right = position.scale(q.to(dtype), k.to(dtype), context)
    scores = left @ right.mT
    assert torch.isfinite(scores).all()
    same(scores.double(), wide[0] @ wide[1].mT, 10 * torch.finfo(dtype).eps)
    ends = places(0, 15000, 29999)
    left, right = position.scale(q.to(dtype).expand(1, 1, 3, 16), k[:, :, :3].to(dtype), ends)
    assert torch.isfinite(left @ right.mT).all()


def test_xpos_fades_with_the_distance_and_takes_no_encoder(tokens):
    x = torch.ones(1, 1, 2, 16, dtype=torch.float64)
    norms = [
        (XPos(16).scale(x, x, places(0, distance))[0][0, 0, 1] * XPos(16).scale(x, x, places(0, distance))[1][0, 0, 0])
        for distance in (0, 100, 1000, 10000)
    ]
    sizes = torch.stack(norms).sum(dim=-1)
    assert sizes[0] == pytest.approx(16.0)
    assert (sizes.diff() < 0).all()
    with pytest.raises(ValueError, match="it takes a causal model"):
        make_model(NoriaRoFormerForMaskedLM, position_encoding="xpos")(tokens(1, 4))
    with pytest.raises(ValueError, match=r"`gamma` \(0\) and `scale_base` \(512.0\) of xPos must be positive"):
        XPos(8, gamma=0)


def test_positions_of_keys_are_asked_for():
    x = torch.randn(1, 1, 2, 8)
    with pytest.raises(ValueError, match="needs the positions of the keys"):
        XPos(8).scale(x, x, Context(torch.arange(2)[None]))


# log n scaling


@pytest.mark.parametrize(("count", "plain", "scaled", "invariant"), [(64, 3.70, 3.95, 2.55), (8192, 8.52, 8.02, 3.02)])
def test_entropies_on_random_keys(count, plain, scaled, invariant):
    """Means for d = 64; neither log_512 n nor log n / (0.24 d) holds the entropy constant."""
    q, k = (F.normalize(torch.randn(rows, 64), dim=-1) * 8 for rows in (400, count))
    scores = q @ k.T
    factor = log_scale(torch.tensor(count)).item()
    for scale, expected in ((1 / 8, plain), (factor / 8, scaled), (math.log(count) / (0.24 * 64), invariant)):
        weights = (scores * scale).softmax(dim=-1)
        entropy = -(weights * weights.clamp(min=1e-30).log()).sum(dim=-1).mean()
        assert entropy.item() == pytest.approx(expected, abs=0.06)


def test_factors_are_the_published_ones():
    assert log_scale(torch.tensor(1)).item() == 0, "a query that sees one key needs no score"
    assert log_scale(torch.tensor(512)).item() == pytest.approx(1.0, rel=1e-6)
    floored = log_scale(torch.tensor([1, 15, 16, 17]), floor=16)
    same(floored, torch.tensor([16, 16, 16, 17]).log() / math.log(512), 1e-6)
    for base, floor in ((1.0, None), (512.0, 0)):
        with pytest.raises(ValueError, match="a base above 1 and a floor of at least 1"):
            LogScaling(PositionEncoding(), base, floor)


def test_what_a_query_sees_is_counted():
    positions, mask = torch.tensor([[0, 1, 2, 3]] * 2), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    segments = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]])
    assert count_seen(Context(positions, mask)).tolist() == [[1, 2, 3, 4]] * 2
    assert count_seen(Context(positions, causal=False)).tolist() == [[4] * 4] * 2
    assert count_seen(Context(positions, mask, causal=False)).tolist() == [[3] * 4, [4] * 4]
    assert count_seen(Context(positions, None, segments, causal=False)).tolist() == [[3, 3, 3, 1], [1, 3, 3, 3]]
    found = count_seen(Context(positions, mask, segments, causal=False)).tolist()
    assert found == [[3, 3, 3, 0], [1, 3, 3, 3]]
    shown = (segments[:, :, None] == segments[:, None, :])[:, None]
    for visible in (shown, torch.where(shown, 0.0, torch.finfo(torch.float32).min)):
        found = count_seen(Context(positions, visibility=visible, causal=False))
        assert found.tolist() == [[3, 3, 3, 1], [1, 3, 3, 3]]


def test_scaled_scores_are_softmax_plus():
    """Every row by its own number of real keys, as bert4keras has it."""
    q, k, mask = *torch.randn(2, 2, 1, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    context = Context(torch.arange(5)[None], mask, causal=False)
    left, right = LogScaling(Rotary(8)).rotate(q, k, context)
    plain_left, plain_right = Rotary(8).rotate(q, k, Context(torch.arange(5)[None]))
    assert torch.equal(right, plain_right)
    for row, count in ((0, 5), (1, 3)):
        same(left[row], plain_left[row] * (math.log(count) / math.log(512)), 1e-6)


def test_a_wrapped_encoding_keeps_its_hooks():
    class Everything(PositionEncoding):
        terms = 3

        def turn(self, v, context):
            return v + 1

        def scale(self, q, k, context):
            return q * 2, k * 3

        def bias(self, q, k, context):
            return q @ k.mT

        def read(self, weights, context):
            return weights.sum()

    inner, x, context = Everything(), torch.ones(1, 1, 2, 4), places(0, 1)
    wrapped = LogScaling(inner)
    assert (wrapped.terms, wrapped.biased, wrapped.reads, wrapped.sees_keys) == (3, True, True, True)
    for hook, given in (("turn", (x,)), ("scale", (x, x)), ("bias", (x, x)), ("read", (x,))):
        found, expected = (getattr(position, hook)(*given, context) for position in (wrapped, inner))
        torch.testing.assert_close(found, expected)
    plain = LogScaling(Rotary(4))
    assert (plain.biased, plain.reads, plain.sees_keys) == (False, False, False)


# Linear attention in the encoder


FORMS = {
    "both": {"feature_map": "elu", "rotary": "both"},
    "numerator": {"feature_map": "elu", "rotary": "numerator"},
    "probability": {"feature_map": "cosine", "rotary": "both"},
}


@pytest.mark.parametrize("kind", ["rotary", "rotary_half", "rotary_trainable"])
@pytest.mark.parametrize("form", FORMS)
def test_linear_attention_is_its_recurrence(form, kind, tokens):
    model, ids = make_model(attention="linear", position_encoding=kind, **FORMS[form]), tokens(2, 15)
    expected, cache, found = model(ids, use_cache=False).logits, None, []
    for token in ids.split(1, dim=1):
        output = model(token, past_key_values=cache, use_cache=True)
        cache, found = output.past_key_values, [*found, output.logits]
    same(torch.cat(found, dim=1), expected, 1e-9)


@pytest.mark.parametrize("head", [NoriaRoFormerForCausalLM, NoriaRoFormerForMaskedLM])
@pytest.mark.parametrize("form", FORMS)
def test_linear_attention_sees_distances(form, head, tokens):
    model, ids = make_model(head, attention="linear", **FORMS[form]), tokens(2, 9)
    here = model(ids).logits
    same(model(ids, position_ids=torch.arange(9)[None] + 321).logits, here, 1e-10)


def test_which_rotated_scores_are_negative():
    """elu + 1 for 256 tokens of 16 features: some 8 % turn negative; 1 + cos never does, nor what is not rotated."""
    q, k = torch.randn(2, 1, 1, 256, 16, dtype=torch.float64)
    context = places(*range(256))
    features = F.elu(q) + 1, F.elu(k) + 1
    left, right = Rotary(16).rotate(*features, context)
    assert 0.05 < (left @ right.mT < 0).double().mean() < 0.11
    assert (features[0] @ features[1].mT).min() > 0
    left, right = Rotary(16).rotate(F.normalize(q, dim=-1), F.normalize(k, dim=-1), context)
    assert (1 + left @ right.mT).min() >= 0
