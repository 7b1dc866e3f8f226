"""Law 12: one graph for the forward call, one for the decoding step, and programs that torch.export carries away."""

import os

import pytest
import torch
import torch._inductor.config
from architectures import CAUSAL, CLASSIFIERS, MASKED
from laws import gradients, over, packed, ragged, same, same_gradients
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export
from transformers import CompileConfig, StaticCache

from noria import NoriaCache

STEPS = 64
# Where a variant adds nothing to the question, the plain line of each architecture stands for all.
PLAIN = [entry for entry in CAUSAL if "-" not in entry.name]
HEADS = [
    pytest.param(entry, head, id=f"{entry.name}-{head}")
    for head, entries in (("ForMaskedLM", MASKED), ("ForSequenceClassification", CLASSIFIERS))
    for entry in entries
    if "-" not in entry.name
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model, backend: str = "eager", **options):
    """The model as one graph, and the counter of its compilations; the default backend only traces."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, fullgraph=True, backend=counter, **options), counter


def inputs(kind: str, tokens) -> dict[str, torch.Tensor]:
    rows = [tokens(1, length, seed=length)[0] for length in (5, 9, 3)]
    if kind == "packed":
        ids, positions = packed(rows)
        return {"input_ids": ids, "position_ids": positions, "labels": ids}
    if kind == "padded":
        ids, mask = ragged(rows, "left")
        return {"input_ids": ids, "attention_mask": mask, "labels": ids}
    return {"input_ids": tokens(2, 9)}


@pytest.mark.parametrize("kind", ["plain", "padded", "packed"])
@over(CAUSAL)
def test_forward_is_one_graph(entry, kind, tokens) -> None:
    model, given = entry.model(), inputs(kind, tokens)
    expected = model(**given, use_cache=kind != "packed")
    found = compiled(model)[0](**given, use_cache=kind != "packed")
    same(found.logits, expected.logits)
    if "labels" in given:
        same(found.loss, expected.loss, 1e-6)


@pytest.mark.parametrize(("entry", "head"), HEADS)
def test_other_heads_are_one_graph(entry, head, tokens) -> None:
    model = entry.model(head)
    ids, mask = ragged([tokens(1, 5)[0], tokens(1, 9)[0]], "right")
    same(compiled(model)[0](ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


@over(PLAIN)
def test_training_is_one_graph(entry, tokens) -> None:
    model, ids = entry.model().train(), tokens(2, 9)
    expected = gradients(model, model(ids, labels=ids, use_cache=False).loss)
    train, _ = compiled(model, "aot_eager")
    same_gradients(gradients(model, train(ids, labels=ids, use_cache=False).loss), expected)


@over(CAUSAL)
@torch.no_grad()
def test_any_length_shares_one_graph(entry, tokens) -> None:
    model = entry.model()
    forward, counter = compiled(model, dynamic=True)
    for length in (5, 9, 33, 70, 17):
        ids = tokens(2, length)
        same(forward(ids, use_cache=False).logits, model(ids).logits)
    assert counter.frame_count == 1


def decode(model, step, ids: torch.Tensor, prefix: int) -> torch.Tensor:
    """Logits of ids (b t) after `prefix` tokens, one step each."""
    cache = StaticCache(config=model.config, max_cache_len=ids.shape[1])
    model(ids[:, :prefix], past_key_values=cache, use_cache=True)
    steps = ids[:, prefix:].split(1, dim=1)
    return torch.cat([step(token.clone(), past_key_values=cache, use_cache=True).logits for token in steps], dim=1)


@over(CAUSAL)
@torch.no_grad()
def test_decoding_does_not_recompile(entry, tokens) -> None:
    model, ids = entry.model(), tokens(2, 6 + STEPS)
    step, counter = compiled(model)
    found = decode(model, step, ids, prefix=6)
    assert counter.frame_count == 1
    same(found, model(ids).logits[:, 6:])


@over(CAUSAL)
def test_compiled_generate_writes_the_same(entry, tokens) -> None:
    model, prompt = entry.model(), tokens(2, 6)
    expected = model.generate(prompt, max_new_tokens=20, do_sample=False)
    config = CompileConfig(fullgraph=True, dynamic=False, backend="eager", mode=None)
    config._compile_all_devices = True
    options = {"max_new_tokens": 20, "do_sample": False, "cache_implementation": "static", "compile_config": config}
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(model.generate(prompt, **options), expected)
    assert hasattr(model, "_compiled_call")


def states(cache) -> list[list[torch.Tensor]]:
    """The tensors that each layer of a cache keeps."""
    return [list(layer.state) if hasattr(layer, "state") else [layer.keys, layer.values] for layer in cache.layers]


class Prefill(torch.nn.Module):
    """ids (b t) -> logits and the states after them."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids):
        out = self.model(ids, use_cache=True)
        return out.logits, states(out.past_key_values)


class Step(torch.nn.Module):
    """One token (b 1), its position and the states before it -> logits and the states after it."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids, positions, before):
        cache = NoriaCache(self.model.config)
        for layer, parts in zip(cache.layers, before, strict=True):
            if hasattr(layer, "state"):
                layer.put(tuple(parts), 0)
            else:
                layer.update(*parts)
        out = self.model(ids, position_ids=positions, past_key_values=cache, use_cache=True)
        return out.logits, states(out.past_key_values)


@over(CAUSAL)
@torch.no_grad()
def test_exported_programs_carry_the_state(entry, tokens) -> None:
    model, ids = entry.model(), tokens(2, 78)
    length = {1: Dim("length", min=1, max=4096)}
    prefill = export(Prefill(model), (tokens(2, 11),), dynamic_shapes={"ids": length}).module()
    expected = model(ids).logits
    for cut in (1, 3, 64, 70):
        logits, carried = prefill(ids[:, :cut])
        same(logits, expected[:, :cut])
    grows = not hasattr(NoriaCache(model.config).layers[0], "state")
    past = {2: Dim("past", min=1, max=4096)} if grows else None
    shapes = {"ids": None, "positions": None, "before": [[past for _ in layer] for layer in carried]}
    step = export(Step(model), (ids[:, cut : cut + 1].clone(), torch.tensor([[cut]]), carried), dynamic_shapes=shapes)
    run = step.module()
    for place in range(cut, ids.shape[1]):
        logits, carried = run(ids[:, place : place + 1], torch.tensor([[place]]), carried)
        same(logits, expected[:, place : place + 1])


def processor_seconds() -> float:
    """Of this process and of the compilers that it ran: other work on the machine does not count."""
    return sum(os.times()[:4])


@pytest.mark.slow
@over(PLAIN)
def test_inductor_compiles_within_a_minute(entry, tokens) -> None:
    model, ids = entry.model(dtype=torch.float32, num_hidden_layers=3, initializer_range=0.02), tokens(2, 16 + STEPS)
    expected = model(ids).logits.detach()
    start = processor_seconds()
    with torch._inductor.config.patch(compile_threads=1, force_disable_caches=True):
        train, _ = compiled(model.train(), "inductor")
        out = train(ids, labels=ids, use_cache=False)
        out.loss.backward()
    assert processor_seconds() - start < 60
    same(out.logits.detach(), expected, 1e-4)
    model.eval()
    with torch.no_grad():
        step, counter = compiled(model, "inductor")
        same(decode(model, step, ids, prefix=16), expected[:, 16:], 1e-4)
    assert counter.frame_count == 1
