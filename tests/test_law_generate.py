"""Laws 6 and 7: every way to generate writes the same text, and what is rolled back was never seen."""

import pytest
import torch
from architectures import CAUSAL
from laws import over, ragged, same
from transformers import DynamicCache, StaticCache, TextStreamer

from noria import NoriaCache

NEW = 12


def greedy(model, ids, **kwargs):
    return model.generate(ids, max_new_tokens=NEW, do_sample=False, **kwargs)


@over(CAUSAL)
def test_greedy_with_cache_is_without(entry, tokens):
    model, ids = entry.model(), tokens(3, 7)
    assert torch.equal(greedy(model, ids), greedy(model, ids, use_cache=False))


@over(CAUSAL)
@pytest.mark.parametrize("beams", [2, 5])
def test_beams_with_cache_are_without(entry, beams, tokens):
    model, ids = entry.model(), tokens(2, 5)
    kwargs = {"num_beams": beams, "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True}
    cached, plain = greedy(model, ids, **kwargs), greedy(model, ids, use_cache=False, **kwargs)
    assert torch.equal(cached.sequences, plain.sequences)
    same(cached.sequences_scores, plain.sequences_scores, 1e-5)


@over(CAUSAL)
def test_sampling_with_cache_is_without(entry, tokens):
    model, ids = entry.model(), tokens(2, 5)
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        kwargs = {"do_sample": True, "temperature": 0.7, "top_k": 20, "num_return_sequences": 3}
        texts.append(model.generate(ids, max_new_tokens=NEW, use_cache=use_cache, **kwargs))
    assert torch.equal(*texts)


@over(CAUSAL)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_prompt_lookup_is_greedy(entry, size, tokens):
    model = entry.model()
    ids = tokens(1, 4).repeat(1, 4)  # a prompt that repeats itself, so that some guesses are right
    assert torch.equal(greedy(model, ids, prompt_lookup_num_tokens=size), greedy(model, ids))


@over(CAUSAL)
@pytest.mark.parametrize("assistant_seed", [0, 1])
def test_assisted_is_greedy(entry, assistant_seed, tokens):
    """Seed 0 makes the same model, whose guesses are all accepted; seed 1 another one."""
    model, ids = entry.model(), tokens(1, 9)
    assistant = entry.model(seed=assistant_seed)
    assert torch.equal(greedy(model, ids, assistant_model=assistant), greedy(model, ids))


@over(CAUSAL)
def test_a_returned_cache_goes_on(entry, tokens):
    model, ids = entry.model(), tokens(2, 6)
    whole = greedy(model, ids)
    first = model.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    again = model.generate(
        first.sequences,
        attention_mask=torch.ones_like(first.sequences),  # else a token that is the padding's would count as such
        max_new_tokens=NEW - 5,
        do_sample=False,
        past_key_values=first.past_key_values,
    )
    assert torch.equal(again, whole)


@over(CAUSAL)
def test_a_new_turn_continues_the_conversation(entry, tokens):
    """The cache of the first turn and the whole conversation, of which several tokens are new."""
    model, ids, reply = entry.model(), tokens(1, 6), tokens(1, 4, 9)
    first = model.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    conversation = torch.cat([first.sequences, reply], dim=1)
    assert torch.equal(greedy(model, conversation, past_key_values=first.past_key_values), greedy(model, conversation))


@over(CAUSAL)
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_chunked_prefill(entry, chunk, tokens):
    model = entry.model()
    ids, mask = ragged([tokens(1, 13)[0], tokens(1, 6, 1)[0]], "left")
    expected = greedy(model, ids, attention_mask=mask)
    assert torch.equal(greedy(model, ids, attention_mask=mask, prefill_chunk_size=chunk), expected)


@over(CAUSAL)
@pytest.mark.parametrize("side", ["left", "right"])
def test_static_cache(entry, side, tokens):
    model = entry.model()
    ids, mask = ragged([tokens(1, 8)[0], tokens(1, 3, 1)[0]], side)
    expected = greedy(model, ids, attention_mask=mask)
    assert torch.equal(greedy(model, ids, attention_mask=mask, cache_implementation="static"), expected)
    cache = StaticCache(model.config, max_cache_len=64)
    for _ in range(2):  # the second time from a cache that was reset
        assert torch.equal(greedy(model, ids, attention_mask=mask, past_key_values=cache), expected)
        cache.reset()


@over(CAUSAL)
def test_transformers_own_empty_cache_is_taken(entry, tokens):
    model, ids = entry.model(), tokens(2, 6)
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        assert torch.equal(greedy(model, ids, past_key_values=cache), greedy(model, ids))


@over(CAUSAL)
def test_streaming(entry, tokens):
    class Collect(TextStreamer):
        def __init__(self):
            self.ids = []

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ids.append("end")

    model, ids, streamer = entry.model(), tokens(1, 6), Collect()
    assert streamer.ids != greedy(model, ids, streamer=streamer)[0].tolist()
    assert streamer.ids == [*greedy(model, ids)[0].tolist(), "end"]


@over(CAUSAL)
def test_embeddings_as_prompt(entry, tokens):
    model, ids = entry.model(), tokens(2, 6)
    written = greedy(model, None, inputs_embeds=model.get_input_embeddings()(ids))
    assert torch.equal(written, greedy(model, ids)[:, 6:])


@over(CAUSAL)
@pytest.mark.parametrize("pieces", [(6,), (1, 1, 4), (2, 3, 1)])
def test_rolled_back_tokens_were_never_seen(entry, pieces, tokens):
    """Several pieces since the record began; some, all or none of them are taken back."""
    model, ids, wrong = entry.model(), tokens(2, 8), tokens(2, 6, 5)
    for back in range(7):
        cache = NoriaCache(model.config)
        model(ids[:, :5], past_key_values=cache, use_cache=True)
        cache.activate_past_recording()
        for piece in wrong.split(pieces, dim=1):
            model(piece, past_key_values=cache, use_cache=True)
        cache.crop(-back)
        kept = torch.cat([ids[:, :5], wrong[:, : 6 - back]], dim=1)
        assert cache.get_seq_length() == kept.shape[1]
        follow = model(ids[:, 5:], past_key_values=cache, use_cache=True).logits
        same(follow, model(torch.cat([kept, ids[:, 5:]], dim=1)).logits[:, -3:])


@over(CAUSAL)
def test_rollback_after_padding_and_reordering(entry, tokens):
    model = entry.model()
    ids, mask = ragged([tokens(1, 7)[0], tokens(1, 4, 1)[0]], "left")
    wrong, order = tokens(2, 3, 5), torch.tensor([1, 0])
    cache = NoriaCache(model.config)
    cache.activate_past_recording()
    model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
    grown = torch.cat([mask, torch.ones(2, 3, dtype=torch.int64)], dim=1)
    model(wrong, attention_mask=grown, past_key_values=cache, use_cache=True)
    cache.reorder_cache(order)
    cache.crop(-2)
    ids, mask = torch.cat([ids, wrong[:, :1], tokens(2, 2, 8)], dim=1)[order], grown[order]
    ids[:, -2:] = tokens(2, 2, 8)
    follow = model(ids[:, -2:], attention_mask=mask, past_key_values=cache, use_cache=True).logits
    same(follow, model(ids, attention_mask=mask).logits[:, -2:])


@over(CAUSAL, "constant state")
def test_what_was_not_recorded_cannot_be_rolled_back(entry, tokens):
    model, ids = entry.model(), tokens(1, 5)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.crop(-1)
    cache.activate_past_recording()
    model(ids[:, :2], past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="only the last 2 were recorded"):
        cache.crop(-3)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)
