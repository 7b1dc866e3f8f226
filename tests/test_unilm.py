"""RoFormer-Sim: a prompt read in both directions, text written after it, and sentences as vectors."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from laws import LOSS_TOLERANCE, gradients, ragged, same, same_gradients
from torch import Tensor
from transformers import DynamicCache

from noria import NoriaCache, NoriaRoFormerConfig, NoriaRoFormerForCausalLM, NoriaRoFormerForMaskedLM


def sim(head=NoriaRoFormerForCausalLM, **fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    fields = {"unilm": True, "pooler": "linear", "initializer_range": 0.3, "pad_token_id": 0} | fields
    return head(NoriaRoFormerConfig(**sizes, **fields)).double().eval()


def types_of(prompt: int, written: int, rows: int = 2) -> Tensor:
    return torch.cat((torch.zeros(rows, prompt), torch.ones(rows, written)), dim=1).long()


def test_visibility_is_the_cumulative_sum_of_types(tokens) -> None:
    model, ids, types = sim(attn_implementation="eager"), tokens(2, 9), torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0, 1]])
    types = torch.cat((types, types_of(4, 5, 1)))
    weights = model(ids, token_type_ids=types, output_attentions=True).attentions[0]
    order = types.cumsum(1)
    expected = order[:, None, :] <= order[:, :, None]
    assert torch.equal(weights.gt(0).all(dim=1), expected)


def test_a_written_token_changes_nothing_before_it_and_a_prompt_token_everything(tokens) -> None:
    model, ids, types = sim(), tokens(1, 8), types_of(4, 4, 1)
    base = model(ids, token_type_ids=types).logits
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % 61
    same(model(changed, token_type_ids=types).logits[:, :6], base[:, :6])
    changed = ids.clone()
    changed[0, 3] = (ids[0, 3] + 1) % 61
    assert ((model(changed, token_type_ids=types).logits - base).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("pieces", [[5], [1, 4], [2, 1, 2], [1] * 5])
@pytest.mark.parametrize("cache_class", [NoriaCache, DynamicCache])
def test_what_is_written_in_any_pieces_is_the_same(cache_class, pieces, tokens) -> None:
    model, ids = sim(), tokens(2, 9)
    expected = model(ids, token_type_ids=types_of(4, 5)).logits
    cache = cache_class(config=model.config)
    found = [model(ids[:, :4], past_key_values=cache, use_cache=True).logits]
    for piece in ids[:, 4:].split(pieces, dim=1):
        found.append(model(piece, past_key_values=cache, use_cache=True).logits)
    same(torch.cat(found, dim=1), expected)


def test_rolled_back_writing_was_never_written(tokens) -> None:
    model, ids = sim(), tokens(2, 9)
    cache = NoriaCache(model.config)
    model(ids[:, :4], past_key_values=cache, use_cache=True)
    model(tokens(2, 3, 5), past_key_values=cache, use_cache=True)
    cache.crop(-3)
    found = model(ids[:, 4:], past_key_values=cache, use_cache=True).logits
    same(found, model(ids, token_type_ids=types_of(4, 5)).logits[:, 4:])


def test_a_prompt_in_pieces_is_refused(tokens) -> None:
    model, cache = sim(), None
    cache = model(tokens(2, 4), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot be given piece by piece"):
        model(tokens(2, 2), past_key_values=cache, token_type_ids=types_of(2, 0))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side, tokens) -> None:
    model, rows = sim(), [tokens(1, length, seed=length)[0] for length in (7, 4, 9)]
    ids, mask = ragged(rows, side)
    kinds, _ = ragged([types_of(3, len(row) - 3, 1)[0] for row in rows], side, fill=0)
    found = model(ids, attention_mask=mask, token_type_ids=kinds).logits
    for row, logits, real in zip(rows, found, mask.bool(), strict=True):
        same(logits[real], model(row[None], token_type_ids=types_of(3, len(row) - 3, 1)).logits[0])


def test_packed_is_separate(tokens) -> None:
    model, rows = sim(), [tokens(1, length, seed=length)[0] for length in (7, 4, 9)]
    kinds = torch.cat([types_of(3, len(row) - 3, 1)[0] for row in rows])
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    found = model(torch.cat(rows)[None], token_type_ids=kinds[None], position_ids=positions[None], use_cache=False)
    alone = [model(row[None], token_type_ids=types_of(3, len(row) - 3, 1)).logits[0] for row in rows]
    same(found.logits[0], torch.cat(alone))


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}, {"prompt_lookup_num_tokens": 2}],
    ids=["greedy", "beam", "sample", "prompt-lookup"],
)
def test_cached_generation_is_uncached_generation(options, tokens) -> None:
    model, ids = sim(), tokens(1 if "prompt_lookup_num_tokens" in options else 2, 6)
    written = []
    for cached in (True, False):
        torch.manual_seed(3)
        plain = {name: value for name, value in options.items() if cached or name != "prompt_lookup_num_tokens"}
        written.append(model.generate(ids, max_new_tokens=7, eos_token_id=None, use_cache=cached, **plain))
    assert torch.equal(*written)


def test_generation_is_what_the_definition_writes(tokens) -> None:
    model, ids = sim(), tokens(2, 6)
    expected = ids
    for _ in range(5):
        types = types_of(6, expected.shape[1] - 6)
        expected = torch.cat((expected, model(expected, token_type_ids=types).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected)
    static = model.generate(
        ids, max_new_tokens=5, do_sample=False, cache_implementation="static", disable_compile=True
    )
    assert torch.equal(static, expected)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False), expected[:, 6:])
    explicit = model.generate(ids, token_type_ids=types_of(6, 0), max_new_tokens=5, do_sample=False)
    assert torch.equal(explicit, expected)


def test_ragged_prompts_are_continued_as_each_alone(tokens) -> None:
    model, rows = sim(), [tokens(1, length, seed=length)[0] for length in (7, 4, 5)]
    ids, mask = ragged(rows, "left")
    written = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    for row, found in zip(rows, written, strict=True):
        alone = model.generate(row[None], max_new_tokens=5, do_sample=False)
        assert torch.equal(found[-5:], alone[0, -5:])


def test_a_returned_cache_is_continued(tokens) -> None:
    model, ids = sim(), tokens(2, 6)
    whole = model.generate(ids, max_new_tokens=8, do_sample=False)
    first = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    rest = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    assert torch.equal(rest, whole)


def test_the_loss_learns_what_is_written_alone(tokens) -> None:
    model, ids, types = sim(), tokens(2, 9), types_of(4, 5)
    out = model(ids, token_type_ids=types, labels=ids)
    logits = model(ids, token_type_ids=types).logits[:, 3:-1].flatten(0, 1).float()
    same(out.loss, torch.nn.functional.cross_entropy(logits, ids[:, 4:].flatten()), LOSS_TOLERANCE)
    with pytest.raises(ValueError, match="token_type_ids"):
        model(ids, labels=ids)


def test_gradient_checkpointing_changes_nothing(tokens) -> None:
    model, ids, types = sim().train(), tokens(2, 9), types_of(4, 5)
    expected = gradients(model, model(ids, token_type_ids=types, labels=ids, use_cache=False).loss)
    model.gradient_checkpointing_enable()
    same_gradients(gradients(model, model(ids, token_type_ids=types, labels=ids, use_cache=False).loss), expected)


def test_sentences_become_unit_vectors(tokens) -> None:
    model, rows = sim(), [tokens(1, length, seed=length)[0] for length in (7, 4, 9)]
    alone = torch.cat([model.encode(row[None]) for row in rows])
    same(alone.norm(dim=-1), torch.ones(3).double())
    for side in ("left", "right"):
        ids, mask = ragged(rows, side)
        same(model.encode(ids, mask), alone)
    hidden = model.model(rows[0][None]).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(model.model.pooler.dense(hidden), dim=-1)
    same(alone[:1], expected)
    assert model.encode(rows[0][None]).requires_grad


def test_masked_and_causal_heads_see_the_same(tokens) -> None:
    ids, types = tokens(2, 9), types_of(4, 5)
    causal = sim()
    masked = sim(NoriaRoFormerForMaskedLM)
    masked.load_state_dict(causal.state_dict())
    same(masked(ids, token_type_ids=types).logits, causal(ids, token_type_ids=types).logits)


def test_refusals(tokens) -> None:
    with pytest.raises(ValueError, match="no pooler"):
        sim(pooler="none").encode(tokens(1, 4))
    with pytest.raises(StrictDataclassError, match="two token types"):
        NoriaRoFormerConfig(unilm=True, type_vocab_size=1)
    model = sim()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="UniLM mask"):
        model(tokens(1, 4))
