"""The search of a codebook: every form finds what the definition says, and needs no memory for each vector."""

import pytest
import torch
from laws import LargestTensor

import noria.modeling.ops.nearest_code as nearest_code
from noria.modeling.ops.dispatch import forced_form
from noria.modeling.ops.nearest_code import nearest_codes


def sample(n, v, d, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return torch.randn(n, d, dtype=dtype), torch.randn(v, d, dtype=dtype)


def by_definition(vectors, codebook):
    return (vectors.double()[:, None] - codebook.double()).square().sum(-1).argmin(1)


@pytest.mark.parametrize("form", ["fast", "chunkwise", "parallel", "sequential", None])
@pytest.mark.parametrize(
    ("n", "v", "d"), [(1, 1, 1), (0, 5, 2), (37, 5, 3), (300, 256, 8), (513, 1024, 4), (64, 100, 16)]
)
def test_every_form_finds_the_nearest(form, n, v, d):
    vectors, codebook = sample(n, v, d)
    codes = nearest_codes(vectors, codebook, form=form)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, by_definition(vectors, codebook))


@pytest.mark.parametrize("block", [1, 7, 300, 1000])
def test_the_block_changes_nothing(block):
    vectors, codebook = sample(300, 384, 8)
    assert torch.equal(nearest_codes(vectors, codebook, block=block), by_definition(vectors, codebook))


@pytest.mark.parametrize("count", [3, 4 * nearest_code.GROUP])
def test_of_equals_the_first_is_taken(count):
    codebook = torch.arange(count, dtype=torch.float32)[:, None].repeat(1, 2).div(2, rounding_mode="floor")
    codes = nearest_codes(codebook, codebook)
    assert torch.equal(codes, torch.arange(count) // 2 * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_single(dtype):
    vectors, codebook = sample(200, 512, 16)
    vectors, codebook = vectors.to(dtype), codebook.to(dtype)
    assert torch.equal(nearest_codes(vectors, codebook), by_definition(vectors, codebook))


def test_small_codebooks_far_from_the_vectors_are_told_apart():
    """Codes of 1e-3 under vectors of norm 1e2: |z|^2 in the sum would leave none of the differences' digits."""
    vectors, codebook = sample(64, 512, 8)
    vectors, codebook = vectors * 30, codebook * 1e-3
    assert (nearest_codes(vectors, codebook) == by_definition(vectors, codebook)).float().mean() > 0.95


def test_double_precision_stays():
    codebook = torch.tensor([[1.0], [1.0 + 1e-12]], dtype=torch.float64)
    assert nearest_codes(codebook.float() + 1e-3, codebook).tolist() == [1, 1]


def test_memory_does_not_grow_with_the_vectors():
    most = []
    for n in (600, 6000):
        vectors, codebook = sample(n, 512, 2)
        with LargestTensor() as seen:
            nearest_codes(vectors, codebook)
        most.append(seen.numbers)
    assert most[0] == most[1] == nearest_code.BLOCK_VECTORS * 512


def test_large_codebooks_are_compared_with_fewer_vectors(monkeypatch):
    monkeypatch.setattr(nearest_code, "BLOCK_NUMBERS", 2048)
    vectors, codebook = sample(100, 512, 2)
    with LargestTensor() as seen:
        codes = nearest_codes(vectors, codebook)
    assert seen.numbers == 2048
    assert torch.equal(codes, by_definition(vectors, codebook))


def test_strided_inputs_and_gradients():
    vectors, codebook = sample(40, 256, 6)
    leaf = vectors.clone().requires_grad_()
    codes = nearest_codes(leaf.t().contiguous().t(), codebook.repeat_interleave(2, dim=1)[:, ::2])
    assert not codes.requires_grad
    assert torch.equal(codes, by_definition(vectors, codebook))


@pytest.mark.parametrize(
    ("vectors", "codebook", "block", "match"),
    [
        ((3, 4), (5, 3), None, r"one width, not \(3, 4\) and \(5, 3\)"),
        ((3, 2, 4), (5, 4), None, r"\(3, 2, 4\)"),
        ((3, 4), (0, 4), None, "codebook is empty"),
        ((3, 4), (5, 4), 0, "block must be at least 1, not 0"),
    ],
)
def test_wrong_input_is_named(vectors, codebook, block, match):
    with pytest.raises(ValueError, match=match):
        nearest_codes(torch.zeros(vectors), torch.zeros(codebook), block=block)


def test_forms_can_be_forced():
    vectors, codebook = sample(600, 512, 2)
    with forced_form("parallel"), LargestTensor() as seen:
        nearest_codes(vectors, codebook)
    assert seen.numbers == 600 * 512
    with pytest.raises(ValueError, match="form must be one of"):
        nearest_codes(vectors, codebook, form="quick")


def test_it_exports_with_any_number_of_vectors():
    class Search(torch.nn.Module):
        def forward(self, vectors, codebook):
            return nearest_codes(vectors, codebook)

    vectors, codebook = sample(40, 16, 2)
    program = torch.export.export(
        Search(), (vectors, codebook), dynamic_shapes=({0: torch.export.Dim("n", min=2)}, None)
    )
    more, _ = sample(77, 16, 2, seed=1)
    assert torch.equal(program.module()(more, codebook), by_definition(more, codebook))


def test_it_compiles_whole():
    compiled = torch.compile(nearest_codes, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (40, 300):
        vectors, codebook = sample(n, 256, 2)
        assert torch.equal(compiled(vectors, codebook), by_definition(vectors, codebook))
