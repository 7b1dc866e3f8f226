"""On CUDA the same numbers come out: forms, cuts, padding, text; skipped where torch sees no device."""

import math

import pytest
import torch
from architectures import CAUSAL
from laws import cuts, gradients, over, ragged, same, same_gradients

from noria import NoriaCache
from noria.modeling.ops.dispatch import FORMS, forced_form, optional_kernel
from noria.modeling.ops.matrix_recurrence import matrix_recurrence

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@over(CAUSAL)
@pytest.mark.parametrize("form", [None, *FORMS])
def test_outputs_and_gradients_are_those_of_the_cpu(entry, form, tokens):
    model, ids = entry.model(), tokens(2, 70)
    with forced_form("sequential"):
        out = model(ids, labels=ids)
        expected = out.logits.detach(), gradients(model, out.loss)
    model.cuda()
    with forced_form(form):
        out = model(ids.cuda(), labels=ids.cuda())
        same(out.logits.cpu(), expected[0], 1e-9)
        same_gradients({name: grad.cpu() for name, grad in gradients(model, out.loss).items()}, expected[1])


@over(CAUSAL)
def test_any_cut_with_padding(entry, tokens):
    model = entry.model().cuda()
    ids, mask = (part.cuda() for part in ragged([tokens(1, 21)[0], tokens(1, 9, 1)[0]], "left"))
    whole = model(ids, attention_mask=mask).logits
    cache, start = NoriaCache(model.config), 0
    for piece in cuts(21, 3):
        end = start + piece
        part = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True).logits
        real = mask[:, start:end].bool()
        same(part[real], whole[:, start:end][real], 1e-9)
        start = end


@over(CAUSAL)
def test_text_is_that_of_the_cpu(entry, tokens):
    model, ids = entry.model(), tokens(2, 8)
    expected = model.generate(ids, max_new_tokens=10, do_sample=False)
    model.cuda()
    for kwargs in ({}, {"num_beams": 1, "use_cache": False}, {"prefill_chunk_size": 3}):
        assert torch.equal(model.generate(ids.cuda(), max_new_tokens=10, do_sample=False, **kwargs).cpu(), expected)


@over([entry for entry in CAUSAL if "-" not in entry.name])
def test_compiled_static_cache_and_offloading(entry, tokens, tmp_path):
    model, ids = entry.model(dtype=torch.float32).cuda(), tokens(2, 8).cuda()
    expected = model.generate(ids, max_new_tokens=10, do_sample=False)
    static = model.generate(ids, max_new_tokens=10, do_sample=False, cache_implementation="static")
    assert torch.equal(static, expected)
    offloaded = model.generate(ids, max_new_tokens=10, do_sample=False, cache_implementation="offloaded")
    assert torch.equal(offloaded, expected)
    model(ids, use_cache=True).past_key_values.save(tmp_path / "cache.safetensors")
    cache = NoriaCache.load(tmp_path / "cache.safetensors", model.config, device="cuda")
    same(
        model(ids[:, :2], past_key_values=cache, use_cache=True).logits.double().cpu(),
        model(torch.cat([ids, ids[:, :2]], dim=1)).logits[:, 8:].double().cpu(),
        1e-4,
    )


@pytest.mark.parametrize("decay", ["none", "head", "token", "channel"])
def test_kernels_of_other_packages_obey_the_first_law(decay):
    if optional_kernel("fla.ops.simple_gla", "chunk_simple_gla", torch.device("cuda")) is None:
        pytest.skip("flash-linear-attention is not installed")
    draw = torch.Generator("cuda").manual_seed(1)
    q, k, v = (torch.randn(2, 4, 300, 64, device="cuda", generator=draw) / 8 for _ in range(3))
    rate = -torch.rand(2, 4, 300, 64, device="cuda", generator=draw) / 4
    given = {"none": None, "head": rate[0, :, 0, 0], "token": rate[..., 0], "channel": rate}[decay]
    inputs = [part.requires_grad_() for part in (q, k, v)]
    y, state = matrix_recurrence(*inputs, given)
    found = torch.autograd.grad((y * y).sum() + state.sum(), inputs)
    wide = [part.detach().double().requires_grad_() for part in inputs]
    y64, state64 = matrix_recurrence(*wide, None if given is None else given.double(), form="sequential")
    expected = torch.autograd.grad((y64 * y64).sum() + state64.sum(), wide)
    tolerance = 5e-3 if math.isfinite(y.sum().item()) else 0.0  # their kernels multiply in TF32
    same(y.double(), y64, tolerance)
    same(state.double(), state64, tolerance)
    for mine, other in zip(found, expected, strict=True):
        same(mine.double(), other, tolerance)
