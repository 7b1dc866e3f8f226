"""Absolute positions: each code by its definition, and what all of them owe a model."""

import math
from itertools import pairwise

import pytest
import torch
from accelerate import disk_offload
from architectures import TINY
from laws import gradients, packed, ragged, same, same_gradients
from torch.export import Dim, export
from torch.nn import functional as F

from noria import NoriaCache, NoriaRoFormerConfig, NoriaRoFormerForCausalLM, NoriaRoFormerForMaskedLM
from noria.modeling.position.complex_order import ComplexOrder
from noria.modeling.position.convolution import Convolution
from noria.modeling.position.floater import SPACING, integrate
from noria.modeling.position.hierarchical import Hierarchical
from noria.modeling.position.learned import Learned
from noria.modeling.position.multiplicative import Multiplicative
from noria.modeling.position.recursive import Recursive
from noria.modeling.position.rotary import Rotary, geometric
from noria.modeling.position.sinusoidal import Sinusoidal
from noria.modeling.state import Context

CAUSAL = ["learned", "hierarchical", "sinusoidal", "recursive", "floater", "multiplicative", "complex"]
ALL = [*CAUSAL, "convolution"]
CHAINS = ["recursive", "floater"]
WIDTH, ROWS = 24, 32


def make(name: str, head=NoriaRoFormerForMaskedLM, dtype: torch.dtype = torch.float64, **fields):
    """A tiny model whose encoding is drawn at random, so that none begins as the identity."""
    torch.manual_seed(0)
    sizes = TINY | {"num_attention_heads": 2, "norm_eps": 1e-6, "max_position_embeddings": ROWS}
    model = head(NoriaRoFormerConfig(**sizes | {"position_encoding": name} | fields))
    return stirred(model).to(dtype).eval()


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    for key, parameter in model.named_parameters():
        if "position" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def drawn(encoding, std: float = 0.3):
    """The encoding in float64 with random parameters."""
    for parameter in encoding.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return encoding.double()


def at(*positions: int) -> Context:
    return Context(torch.tensor([positions]))


def codes(encoding, length: int) -> torch.Tensor:
    """What is added at positions 0 .. length-1, (length d)."""
    return encoding.add(torch.zeros(1, length, WIDTH, dtype=torch.float64), at(*range(length)))[0]


def test_hierarchical_keeps_the_table_and_tells_all_squares_apart() -> None:
    learned, hierarchical = drawn(Learned(7, WIDTH)), Hierarchical(7, WIDTH).double()
    hierarchical.load_state_dict(learned.state_dict())
    found = codes(hierarchical, 49)
    assert torch.equal(found[:7], codes(learned, 7))
    assert torch.cdist(found, found).add(torch.eye(49)).min() > 1e-3
    table = learned.table.weight
    base = (table - 0.4 * table[0]) / 0.6
    same(found.view(7, 7, WIDTH), 0.4 * base[:, None] + 0.6 * base[None, :], 1e-14)


@pytest.mark.parametrize("alpha", [0.5, 0.0, 1.0, -0.1])
def test_hierarchical_refuses_ambiguous_weights(alpha) -> None:
    with pytest.raises(ValueError, match=f"`alpha` must .* not {alpha}"):
        Hierarchical(7, WIDTH, alpha)


def test_a_learned_model_reads_on_as_a_hierarchical_one(tmp_path, tokens) -> None:
    model, ids = make("learned", dtype=torch.float32), tokens(1, 4 * ROWS)
    model.save_pretrained(tmp_path)
    longer = type(model).from_pretrained(tmp_path, position_encoding="hierarchical")
    assert torch.equal(longer(ids[:, :ROWS]).logits, model(ids[:, :ROWS]).logits)
    assert longer(ids).logits.isfinite().all()


def test_sinusoids_are_turned_by_a_shift_and_their_products_know_distances_only() -> None:
    code, theta = codes(Sinusoidal(WIDTH), 60), geometric(10000, WIDTH // 2, WIDTH / 2, torch.device("cpu"))
    for shift in (1, 5, 17):
        cos, sin = (shift * theta).cos(), (shift * theta).sin()
        turn = torch.block_diag(*(torch.tensor([[c, s], [-s, c]]) for c, s in zip(cos, sin, strict=True)))
        same(code[shift:], code[:-shift] @ turn.double().T, 1e-6)
        products = (code[shift:] * code[:-shift]).sum(-1)
        same(products, products[:1].expand_as(products), 1e-6)


def test_recursive_codes_are_made_one_from_the_other() -> None:
    encoding = drawn(Recursive(WIDTH))
    start, weight, bias = encoding.dynamics()
    rows = [start]
    for _ in range(19):
        rows.append(torch.tanh(weight @ rows[-1] + bias))
    same(codes(encoding, 20), torch.stack(rows), 1e-14)


def test_fresh_recursive_codes_differ_at_every_position() -> None:
    model = NoriaRoFormerForMaskedLM(NoriaRoFormerConfig(**TINY | {"position_encoding": "recursive"}))
    code = codes(model.model.position.double(), 512).detach()
    assert torch.cdist(code, code).add(torch.eye(512)).min() > 0.01
    assert 0.5 < code.norm(dim=-1).min() / WIDTH**0.5 / 0.02 < code.norm(dim=-1).max() / WIDTH**0.5 / 0.02 < 30


@pytest.mark.parametrize("name", CHAINS)
@torch.no_grad()
def test_kept_codes_are_those_of_the_parameters(name) -> None:
    encoding = make(name).model.position
    first = codes(encoding, 20)
    assert torch.equal(codes(encoding, 9), first[:9])
    with torch.enable_grad():
        assert torch.equal(codes(encoding, 30)[:20], first)
    same(codes(encoding, 30)[:20], first, 1e-15)
    # `.data` escapes the version counters of autograd.
    encoding.dynamics.start.data.add_(1)
    changed = codes(encoding, 20)
    encoding.kept = None
    assert torch.equal(codes(encoding, 20), changed)
    assert not torch.equal(changed, first)


def rotation_generator(dim: int) -> torch.Tensor:
    theta = geometric(10000, dim // 2, dim / 2, torch.device("cpu"))
    blocks = (torch.tensor([[0, one], [-one, 0]], dtype=torch.float64) for one in theta.tolist())
    return torch.block_diag(*blocks)


def test_sinusoids_solve_a_differential_equation() -> None:
    generator, code = rotation_generator(WIDTH), codes(Sinusoidal(WIDTH), 8)
    found = integrate(lambda p, _: generator @ p, code[0], 0, 7, steps=4000)
    same(found, torch.matrix_exp(7 * generator) @ code[0], 1e-10)
    same(found, code[7], 1e-6)


def test_integral_has_order_four_and_adds_up() -> None:
    generator = rotation_generator(WIDTH)

    def h(p, tau):
        return torch.tanh(generator @ p) + math.sin(3 * tau)

    p = torch.randn(WIDTH, dtype=torch.float64)
    truth = integrate(h, p, 0.0, 2.0, steps=2000)
    errors = [(integrate(h, p, 0.0, 2.0, steps=steps) - truth).norm().item() for steps in (10, 20, 40)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([4, 4], abs=0.25)
    same(integrate(h, integrate(h, p, 0.0, 1.0, steps=1000), 1.0, 2.0, steps=1000), truth, 1e-13)
    with pytest.raises(ValueError, match="at least one step, not 0"):
        integrate(h, p, 0.0, 1.0, steps=0)


def test_fresh_floater_is_sinusoidal_and_a_trained_one_follows_its_flow() -> None:
    model = NoriaRoFormerForMaskedLM(NoriaRoFormerConfig(**TINY | {"position_encoding": "floater"}))
    encoding, sinusoidal = model.model.position.double(), codes(Sinusoidal(WIDTH), 30)
    assert torch.equal(codes(encoding, 30), sinusoidal)
    start, inner, inner_bias, outer, outer_bias = drawn(encoding).dynamics()

    def h(y, tau):
        return outer @ torch.tanh(inner @ torch.cat((y, y.new_tensor([tau]))) + inner_bias) + outer_bias

    flow = integrate(h, start, 0.0, 29 * SPACING, steps=29)
    same(codes(encoding, 30)[29], sinusoidal[29] + flow, 1e-12)


def test_fresh_multiplicative_positions_are_the_identity(tokens) -> None:
    ids, sizes = tokens(2, 9), TINY | {"num_attention_heads": 2}
    plain, fresh = (
        NoriaRoFormerForMaskedLM(NoriaRoFormerConfig(**sizes, position_encoding=name)).eval()
        for name in ("none", "multiplicative")
    )
    fresh.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(fresh(ids).logits, plain(ids).logits)
    encoding, x = drawn(Multiplicative(9, WIDTH)), torch.randn(2, 9, WIDTH, dtype=torch.float64)
    same(encoding.add(x, at(*range(9))), x * (1 + encoding.table.weight), 1e-15)


@pytest.mark.parametrize("words", [61, None], ids=["of words", "shared"])
def test_complex_words_keep_their_amplitudes_and_turn_with_their_position(words, tokens) -> None:
    encoding, ids = drawn(ComplexOrder(WIDTH, words)), tokens(1, 9)
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)

    def placed(shift: int) -> torch.Tensor:
        return torch.view_as_complex(encoding.add(x, at(*range(shift, shift + 9)), ids).view(9, -1, 2).contiguous())

    amplitudes = torch.view_as_complex(x.view(9, -1, 2)).abs()
    delta = encoding.delta.weight[ids[0]] if words else encoding.delta.weight
    omega = geometric(10000, WIDTH // 2, WIDTH / 2, torch.device("cpu")) + delta
    for shift in (0, 3, 1000):
        same(placed(shift).abs(), amplitudes, 1e-12)
        same(placed(shift), placed(0) * torch.exp(1j * omega * shift), 1e-12)


def test_complex_order_of_a_constant_is_rotary() -> None:
    encoding, theta = ComplexOrder(WIDTH, None).double(), torch.zeros(1, WIDTH // 2)
    encoding.delta.weight.data.copy_(theta)
    constant = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(WIDTH // 2).expand(1, 9, -1)
    turned, _ = Rotary(WIDTH).rotate(constant[:, None], constant[:, None], at(*range(9)))
    same(encoding.add(constant, at(*range(9))), turned[:, 0], 1e-15)


def test_complex_frequencies_belong_to_words(tokens) -> None:
    model = make("complex")
    with pytest.raises(ValueError, match="belong to words: give `input_ids`"):
        model(inputs_embeds=torch.zeros(1, 3, WIDTH, dtype=torch.float64))
    with pytest.raises(ValueError, match="word 61 has no frequencies"):
        model.model.position.add(torch.zeros(1, 1, WIDTH), at(0), torch.tensor([[61]]))
    with pytest.raises(ValueError, match="must be even, not 7"):
        ComplexOrder(7, None)


def test_convolution_pads_with_zeros() -> None:
    encoding, x = drawn(Convolution(WIDTH)), torch.randn(2, 9, WIDTH, dtype=torch.float64)
    kernel = encoding.kernel.weight.view(WIDTH, 3, WIDTH).transpose(1, 2)
    expected = F.conv1d(x.transpose(1, 2), kernel, encoding.kernel.bias, padding=1).transpose(1, 2)
    same(encoding.add(x, Context(torch.arange(9)[None], causal=False)), x + expected, 1e-14)


def test_a_constant_image_tells_positions_through_zeros_only() -> None:
    image, kernels = torch.full((1, 1, 32, 32), 3.0), torch.randn(8, 1, 3, 3)
    leaked = F.conv2d(image, kernels, padding=1).std(dim=(2, 3))
    kept = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="circular"), kernels).std(dim=(2, 3))
    assert leaked.min() > 0.1
    assert kept.max() < 1e-5
    row = drawn(Convolution(WIDTH)).add(
        torch.ones(1, 9, WIDTH, dtype=torch.float64), Context(torch.arange(9)[None], causal=False)
    )[0]
    assert torch.equal(row[1:-1].std(dim=0) < 1e-12, torch.ones(WIDTH, dtype=torch.bool))
    assert row.std(dim=0).min() > 1e-3


def test_convolution_is_bidirectional(tokens) -> None:
    with pytest.raises(ValueError, match=r"'convolution' encoding .* cannot be causal"):
        make("convolution", NoriaRoFormerForCausalLM)(tokens(1, 4))


@pytest.mark.parametrize("name", ["none", *ALL])
@torch.no_grad()
def test_codes_break_the_symmetry_of_attention(name, tokens) -> None:
    model, ids, order = make(name), tokens(2, 9), torch.tensor([4, 1, 2, 3, 0, 8, 6, 7, 5])
    error = (model(ids[:, order]).logits - model(ids).logits[:, order]).abs().max()
    assert (error < 1e-10) == (name == "none")


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_a_global_shift_is_seen(name, tokens) -> None:
    model, ids, positions = make(name), tokens(1, 9), torch.arange(9)[None]
    error = (model(ids, position_ids=positions + 3).logits - model(ids).logits).abs().max()
    # Zeros mark the ends of the row, wherever it stands.
    assert (error < 1e-10) == (name == "convolution")


@pytest.mark.parametrize("attention", ["softmax", "linear"])
@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_padding_and_packing_are_invisible(name, attention, tokens) -> None:
    model, rows = make(name, attention=attention), [tokens(1, n, seed=n)[0] for n in (5, 9, 1)]
    expected = [model(row[None]).logits[0] for row in rows]
    for side in ("left", "right"):
        ids, mask = ragged(rows, side)
        logits = model(ids, attention_mask=mask).logits
        for i, alone in enumerate(expected):
            same(logits[i, mask[i].bool()], alone, 1e-9)
    ids, positions = packed(rows)
    for found, alone in zip(model(ids, position_ids=positions).logits[0].split([5, 9, 1]), expected, strict=True):
        same(found, alone, 1e-9)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_positions_of_padding_may_be_anything(name, tokens) -> None:
    model = make(name)
    ids, mask = ragged([tokens(1, 5)[0], tokens(1, 2)[0]], "right")
    positions = torch.where(mask.bool(), torch.arange(5), -7)
    same(model(ids, attention_mask=mask, position_ids=positions).logits[1, :2], model(ids[1:, :2]).logits[0], 1e-9)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_saved_is_loaded(name, tmp_path, tokens) -> None:
    model, ids = make(name, dtype=torch.float32), tokens(2, 9)
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ALL)
def test_gradient_reaches_every_parameter(name, tokens) -> None:
    model, ids = make(name), tokens(2, 9)
    found = gradients(model, model(ids, labels=ids).loss)
    for key, parameter in model.named_parameters():
        assert found[key].abs().max() > 0, key
        assert found[key].shape == parameter.shape


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_beyond_the_trained_length(name, tokens) -> None:
    model, ids = make(name), tokens(1, 4 * ROWS)
    if name == "learned":
        with pytest.raises(ValueError, match=r"position 32 lies outside 0\.\.31.*'hierarchical'"):
            model(ids)
    else:
        assert model(ids).logits.isfinite().all()
    tabled = {"hierarchical": ROWS**2, "multiplicative": ROWS**2, "learned": ROWS}
    wrong = [-1, tabled[name]] if name in tabled else [-1] if name in CHAINS else []
    for position in wrong:
        with pytest.raises(ValueError, match=f"position {position}"):
            model(ids[:, :1], position_ids=torch.tensor([[position]]))


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_decoding_from_a_cache(name, tokens) -> None:
    model = make(name, NoriaRoFormerForCausalLM)
    ids, mask = ragged([tokens(1, 9)[0], tokens(1, 6)[0]], "left")
    expected, cache, found = model(ids, attention_mask=mask).logits, NoriaCache(model.config), []
    for start, end in ((0, 4), (4, 5), (5, 6), (6, 9)):
        piece = {"attention_mask": mask[:, :end], "past_key_values": cache, "use_cache": True}
        found.append(model(ids[:, start:end], **piece).logits)
    same(torch.cat(found, dim=1)[mask.bool()], expected[mask.bool()], 1e-9)
    written = [model.generate(ids, attention_mask=mask, max_new_tokens=6, use_cache=use) for use in (True, False)]
    assert torch.equal(*written)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_half_precision_rounds_only_the_result(name, tokens) -> None:
    model, ids = make(name, dtype=torch.float32), tokens(2, ROWS)
    x = torch.randn(2, ROWS, WIDTH).bfloat16()
    context = Context(torch.arange(ROWS)[None], causal=False)
    position = model.model.position.bfloat16()
    found = position.add(x, context, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = position.add(x, context, ids)
    expected = position.double().add(x.double(), context, ids)
    assert found.dtype == x.dtype
    same(found.double(), expected, 0.02)
    same(cast.double(), expected, 0.02)
    assert model.bfloat16()(ids).logits.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_models_begin_in_half_precision(name, tokens) -> None:
    config = NoriaRoFormerConfig(**TINY | {"position_encoding": name}, dtype=torch.bfloat16)
    model = NoriaRoFormerForMaskedLM._from_config(config)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(tokens(1, 5)).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ALL)
def test_one_graph_with_its_gradient(name, tokens) -> None:
    torch._dynamo.reset()
    model, ids = make(name), tokens(2, 9)
    expected = model(ids, labels=ids)
    slopes = gradients(model, expected.loss)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, labels=ids)
    same(found.logits, expected.logits)
    same_gradients(gradients(model, found.loss), slopes)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_exported(name, tokens) -> None:
    model = make(name)
    shapes = {"input_ids": {1: Dim("length", min=2, max=ROWS)}}
    program = export(model, (), {"input_ids": tokens(2, 11)}, dynamic_shapes=shapes).module()
    for length in (3, 20):
        same(program(input_ids=tokens(2, length)).logits, model(tokens(2, length)).logits)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_offloaded(name, tmp_path, tokens) -> None:
    model, ids = make(name, dtype=torch.float32), tokens(2, 9)
    expected = model(ids).logits
    disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert torch.equal(model(ids).logits, expected)
