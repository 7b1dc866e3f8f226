"""What becomes of latents between VQGAN's encoder and decoder: codes, their gradients, and codebooks that learn."""

import math
import socket
import sys

import pytest
import torch
from torch import distributed, multiprocessing

from noria import NoriaVQGANConfig
from noria.modeling.image.gumbel import divergence
from noria.modeling.image.quantizer import code_perplexity
from noria.modeling.image.quantizers import QUANTIZERS
from noria.modeling.image.used_codes import UsedCodes

SIZE, WIDTH = 12, 6


def make(quantizer="vq", vocab_size=SIZE, **fields):
    """A quantizer with a codebook of unit size, training."""
    config = NoriaVQGANConfig(quantizer=quantizer, vocab_size=vocab_size, code_size=WIDTH, **fields)
    made = QUANTIZERS[quantizer](config)
    for module in made.modules():
        if hasattr(module, "initialize"):
            module.initialize(None)
    if hasattr(made, "embedding"):
        made.embedding.weight.data.normal_()
    if hasattr(made, "embed_avg"):
        made.embed_avg.copy_(made.embedding.weight)
    return made


@pytest.fixture
def latents():
    return torch.randn(2, WIDTH, 4, 5, requires_grad=True)


def importable(quantizer):
    if quantizer == "fsq":
        pytest.importorskip("vector_quantize_pytorch")


KINDS = pytest.mark.parametrize("quantizer", QUANTIZERS)


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_shapes_and_dtypes(quantizer, dtype, latents):
    importable(quantizer)
    output = make(quantizer)(latents.detach().to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    assert output.quantized.shape == latents.shape
    assert output.quantized.dtype == dtype
    assert (output.codes.shape, output.codes.dtype) == ((2, 4, 5), torch.int64)
    assert 0 <= output.codes.min() <= output.codes.max() < SIZE
    assert output.loss.dtype == output.perplexity.dtype == wide
    assert 1 <= output.perplexity <= SIZE


@KINDS
def test_codes_stand_for_what_was_quantized(quantizer, latents):
    importable(quantizer)
    made = make(quantizer).eval()
    output = made(latents)
    assert torch.equal(made.lookup(output.codes), output.quantized)


@KINDS
def test_codes_are_the_same_under_autocast(quantizer, latents):
    importable(quantizer)
    made = make(quantizer).eval()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = made(latents)
        found = made.lookup(narrow.codes)
    assert torch.equal(narrow.codes, made(latents).codes)
    assert torch.equal(narrow.quantized, made(latents).quantized)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("legacy", [True, False])
def test_beta_is_on_the_term_that_legacy_says(legacy, latents):
    """taming's losses weigh the codebook by beta and the encoder by 1; without `legacy` it is the other way round."""
    made = make(commitment_cost=0.25, legacy_commitment=legacy)
    made(latents).loss.backward()
    found = made.embedding(made(latents).codes).movedim(-1, 1)
    slope = 2 * (latents - found).detach() / latents.numel()
    pulled = torch.zeros_like(made.embedding.weight)
    pulled.index_add_(0, made(latents).codes.flatten(), -slope.movedim(1, -1).flatten(0, -2))
    encoder, codebook = (1, 0.25) if legacy else (0.25, 1)
    torch.testing.assert_close(latents.grad, encoder * slope)
    torch.testing.assert_close(made.embedding.weight.grad, codebook * pulled)


@pytest.mark.parametrize("quantizer", ["vq", "ema"])
def test_the_gradient_goes_straight_through(quantizer, latents):
    direction = torch.randn_like(latents)
    (make(quantizer)(latents).quantized * direction).sum().backward()
    torch.testing.assert_close(latents.grad, direction)


def test_the_nearest_vector_is_taken(latents):
    made = make()
    distances = (latents.movedim(1, -1)[..., None, :] - made.embedding.weight).square().sum(-1)
    assert torch.equal(made(latents).codes, distances.argmin(-1))


def test_a_codebook_in_another_order_gives_codes_in_that_order(latents):
    made, order = make(), torch.randperm(SIZE)
    before = made(latents)
    made.embedding.weight.data = made.embedding.weight.data[order]
    after = made(latents)
    assert torch.equal(order[after.codes], before.codes)
    assert torch.equal(after.quantized, before.quantized)


def test_codes_of_unit_length_do_not_know_the_latents_size(latents):
    made = make(normalize_codes=True)
    once, thrice = made(latents), made(3 * latents)
    assert torch.equal(once.codes, thrice.codes)
    torch.testing.assert_close(once.quantized.norm(dim=1), torch.ones(2, 4, 5))
    torch.testing.assert_close(once.loss, thrice.loss)


def test_factorized_codes_are_looked_up_in_fewer_channels(latents):
    made = make(factorized_size=2)
    assert made.embedding.weight.shape == (SIZE, 2)
    output = made(latents)
    (output.quantized.square().mean() + output.loss).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.parameters())
    narrow = made.project_in(latents.movedim(1, -1))
    assert torch.equal(output.codes, torch.cdist(narrow.flatten(0, -2), made.embedding.weight).argmin(1).view(2, 4, 5))


def test_perplexity():
    assert code_perplexity(torch.zeros(5, dtype=torch.long), 8) == 1
    assert code_perplexity(torch.arange(8).repeat(3), 8) == pytest.approx(8)
    assert code_perplexity(torch.tensor([0, 0, 1, 1]), 8) == pytest.approx(2)


def test_running_means_are_those_of_the_paper(latents):
    made = make("ema", ema_decay=0.9)
    before = made.embedding.weight.clone()
    codes = made(latents).codes.flatten()
    z = latents.detach().movedim(1, -1).flatten(0, -2)
    for k in range(SIZE):
        mine = z[codes == k]
        count, total = 0.9 + 0.1 * len(mine), 0.9 * before[k] + 0.1 * mine.sum(0)
        torch.testing.assert_close(made.embedding.weight[k], total / count, rtol=1e-4, atol=1e-4)
    assert made.embedding.weight.grad_fn is None


def test_running_means_rest_outside_of_training(latents):
    made = make("ema").eval()
    before = {name: x.clone() for name, x in made.state_dict().items()}
    made(latents)
    assert all(torch.equal(x, before[name]) for name, x in made.state_dict().items())


def test_unused_means_do_not_jump():
    made = make("ema", ema_decay=0.5)
    made.embedding.weight[1:] += 100
    made.embed_avg.copy_(made.embedding.weight)
    before = made.embedding.weight[1:].clone()
    for _ in range(6):
        made(torch.randn(1, WIDTH, 8, 8))
    torch.testing.assert_close(made.embedding.weight[1:], before, rtol=0.01, atol=0)


def test_running_means_need_no_gradient(latents):
    made = make("ema")
    made(latents).loss.backward()
    assert [name for name, x in made.named_parameters() if x.requires_grad] == []
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize("quantizer", ["vq", "ema"])
def test_dead_codes_come_back_as_latents(quantizer):
    made = make(quantizer, revive_after=3)
    made.embedding.weight.data[4:] = 1e3
    if quantizer == "ema":
        made.embed_avg.copy_(made.embedding.weight)
    far = made.embedding.weight[4:].clone()
    for _ in range(2):
        made(torch.randn(2, WIDTH, 4, 4))
    torch.testing.assert_close(made.embedding.weight[4:], far, rtol=1e-3, atol=0)
    last = torch.randn(2, WIDTH, 4, 4)
    made(last)
    rows = last.movedim(1, -1).flatten(0, -2)
    assert torch.cdist(made.embedding.weight[4:], rows).amin(1).max() < 1e-2
    assert (made.dead_codes.idle[4:] == 0).all()
    assert made(last).perplexity > 4


def test_revival_repeats_under_a_seed():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        made = make(revive_after=1)
        made(torch.randn(1, WIDTH, 2, 2))
        found.append(made.embedding.weight.clone())
    assert torch.equal(*found)


def test_gumbel_takes_the_largest_logit_outside_of_training(latents):
    made = make("gumbel").eval()
    logits = made.logits(latents)
    assert torch.equal(made(latents).codes, logits.argmax(1))
    assert torch.equal(made(latents).codes, made(latents).codes)


@pytest.mark.parametrize("straight_through", [True, False])
def test_gumbel_draws_while_training(straight_through, latents):
    made = make("gumbel", straight_through=straight_through, gumbel_temperature=0.7)
    output = made(latents)
    exact = torch.isclose(output.quantized, made.lookup(output.codes), atol=1e-5).all()
    assert exact if straight_through else not exact
    assert not torch.equal(output.codes, made(latents).codes), "noise is drawn anew"
    (output.quantized.square().sum() + output.loss).backward()
    assert all(x.grad.abs().sum() > 0 for x in (latents, *made.parameters()))


def test_a_cold_gumbel_softmax_is_one_code(latents):
    made = make("gumbel", straight_through=False)
    made.temperature = 1e-4
    output = made(latents)
    assert (output.quantized - made.lookup(output.codes)).abs().median() < 1e-4


def test_gumbel_divergence_is_none_for_uniform_use_and_log_v_for_one_code():
    uniform, certain = torch.zeros(1, SIZE, 2, 2), torch.zeros(1, SIZE, 2, 2)
    certain[:, 3] = 100
    assert divergence(uniform, SIZE).item() == pytest.approx(0, abs=1e-6)
    assert divergence(certain, SIZE).item() == pytest.approx(math.log(SIZE), rel=1e-5)


USED = [7, 2, 9, 4]


@pytest.mark.parametrize(("unknown", "expected"), [(2, 2), ("extra", 4)])
def test_used_codes_are_numbered_by_their_place(unknown, expected):
    used = UsedCodes(USED, unknown)
    codes = torch.arange(SIZE).view(1, 3, 4)
    places = used.place(codes)
    for code, place in zip(codes.flatten().tolist(), places.flatten().tolist(), strict=True):
        assert place == (USED.index(code) if code in USED else expected)
    assert used.restore(torch.tensor([0, 1, 2, 3])).tolist() == USED
    assert used.restore(torch.tensor([4])).item() == USED[0]


def test_unknown_codes_may_be_drawn():
    used = UsedCodes(USED, "random")
    codes = torch.zeros(1, 20, 20, dtype=torch.long)
    torch.manual_seed(1)
    places = used.place(codes)
    assert places.unique().tolist() == [0, 1, 2, 3]
    torch.manual_seed(1)
    assert torch.equal(used.place(codes), places)


@pytest.mark.parametrize("training", [True, False])
def test_gumbel_chooses_among_used_codes_only(training, latents):
    made = make("gumbel", used_codes=USED, unknown_code="extra").train(training)
    output = made(latents)
    assert output.codes.max() < len(USED)
    torch.testing.assert_close(output.quantized, made.lookup(output.codes), atol=1e-5, rtol=0)


def test_finite_scalars_are_the_papers(latents):
    pytest.importorskip("vector_quantize_pytorch")
    made = make("fsq", vocab_size=15, fsq_levels=[5, 3])
    values = made.values(torch.arange(15))
    assert sorted(values[:, 0].unique().tolist()) == [-1, -0.5, 0, 0.5, 1]
    assert values[:, 1].unique().tolist() == [-1, 0, 1]
    assert len(values.unique(dim=0)) == 15
    z = made.project_in(latents.movedim(1, -1))
    rounded = (torch.tensor([2.002, 1.001]) * z.tanh()).round() / torch.tensor([2.0, 1.0])
    assert torch.equal(made.values(made(latents).codes), rounded)
    output = made(latents)
    output.quantized.square().sum().backward()
    assert output.loss == 0
    assert all(x.grad.abs().sum() > 0 for x in (latents, made.project_in.weight, made.project_out.weight))


def test_finite_scalars_without_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(ImportError, match=r"install noria\[fsq\], or choose another quantizer"):
        make("fsq")


def learned(batches):
    """What a codebook of running means holds after each batch."""
    torch.manual_seed(0)
    made = make("ema", ema_decay=0.5, revive_after=2)
    return [made(batch) and {name: x.clone() for name, x in made.state_dict().items()} for batch in batches]


def learn_in_process(rank, port, batches, results):
    """One of two processes that learn from half of each batch."""
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    results[rank] = learned([batch[rank : rank + 1] for batch in batches])
    distributed.destroy_process_group()


def test_processes_learn_one_codebook(free_port):
    """Two processes with half of the batch agree with each other, and before a revival with one that has it all."""
    batches = [torch.randn(2, WIDTH, 2, 2) for _ in range(4)]
    results = multiprocessing.Manager().dict()
    multiprocessing.spawn(learn_in_process, (free_port, batches, results), nprocs=2)
    assert all(
        torch.equal(x, second[name])
        for first, second in zip(results[0], results[1], strict=True)
        for name, x in first.items()
    )
    for name, x in learned(batches[:1])[0].items():
        torch.testing.assert_close(results[0][0][name], x, rtol=1e-5, atol=1e-6)


@pytest.fixture
def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
