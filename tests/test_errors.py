"""Bad input gets one clear message that names the value and what would be right."""

import pytest
import torch
from architectures import CAUSAL
from laws import over

from noria import (
    NoriaCache,
    NoriaLinearTransformerConfig,
    NoriaLinearTransformerModel,
    NoriaRetNetConfig,
    NoriaRetNetForCausalLM,
    NoriaRetNetModel,
    NoriaRoFormerConfig,
)


@over(CAUSAL)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_mask": torch.ones(2, 5)}, r"`attention_mask` has shape \(2, 5\).*must be \(2, 6\)"),
        ({"attention_mask": torch.ones(1, 6)}, r"`attention_mask` has shape \(1, 6\).*must be \(2, 6\)"),
        ({"position_ids": torch.arange(5)[None]}, r"`position_ids` has shape \(1, 5\).*\(2, 6\) or \(1, 6\)"),
        ({"position_ids": torch.tensor([[0, 1, 2, 3, 2, 4]])}, "go from 3 to 2 at token 4 of row 0"),
        ({"position_ids": torch.tensor([[0, 1, 1, 2, 3, 4]])}, "go from 1 to 1 at token 2 of row 0"),
        ({"seq_idx": torch.zeros(2, 5)}, r"`seq_idx` has shape \(2, 5\); it must be \(2, 6\)"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 6])}, "describes one flattened row, but the batch has 2"),
        ({"inputs_embeds": torch.ones(2, 6, 24)}, "exactly one of `input_ids` and `inputs_embeds`"),
    ],
)
def test_inputs(entry, fields, message, tokens):
    with pytest.raises(ValueError, match=message):
        entry.model(dtype=torch.float32)(tokens(2, 6), **fields)


@over(CAUSAL)
def test_boundaries_must_cover_the_row(entry, tokens):
    with pytest.raises(ValueError, match="must run from 0 to 6, the row's length, not"):
        entry.model()(tokens(1, 6), cu_seq_lens_q=torch.tensor([0, 3, 5]))


@over(CAUSAL)
def test_a_mask_must_cover_the_past(entry, tokens):
    model, ids = entry.model(), tokens(2, 6)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"for 6 new tokens after 6 it must be \(2, 12\), past tokens included"):
        model(ids, attention_mask=torch.ones(2, 6), past_key_values=cache)


@over(CAUSAL)
def test_a_cache_of_another_batch_or_model(entry, tokens):
    model, ids = entry.model(), tokens(2, 6)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="the cache holds 2 rows, but the input has 3"):
        model(tokens(3, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="this cache comes from another model: it has 2 layers"):
        entry.model(num_hidden_layers=3)(ids, past_key_values=cache)
    for other in CAUSAL:
        if other.config().layer_types != entry.config().layer_types:
            with pytest.raises(ValueError, match="this cache comes from another model"):
                other.model()(ids, past_key_values=cache)


@over(CAUSAL, "constant state")
def test_states_of_other_shapes(entry, tokens):
    cache = entry.model()(tokens(2, 6), use_cache=True).past_key_values
    wider = entry.model(hidden_size=40, num_attention_heads=2)
    with pytest.raises(ValueError, match="comes from another model: its states are"):
        wider(tokens(2, 1), past_key_values=cache)


@over(CAUSAL)
def test_four_dimensional_masks(entry, tokens):
    """Softmax attention takes them, boolean or additive, and gives what the 2-D mask gives; others say why not."""
    model, ids = entry.model(), tokens(2, 6)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].expand(2, 1, 6, 6)
    if "constant state" not in entry.limits:
        with pytest.raises(ValueError, match="a 4-D `attention_mask` says what softmax attention sees"):
            model(ids, attention_mask=causal)
        return
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        expected = model(ids).logits
        additive = torch.zeros(2, 1, 6, 6, dtype=torch.float64).masked_fill(~causal, -torch.inf)
        for mask in (causal, causal.long(), additive):
            torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected)


def test_packed_sequences_do_not_mix_in_a_cache_of_keys(tokens):
    entry = next(entry for entry in CAUSAL if "constant state" in entry.limits)
    model, positions = entry.model(), torch.tensor([[0, 1, 2, 0, 1, 2]])
    assert model(tokens(1, 6), position_ids=positions, use_cache=True).past_key_values is None
    with pytest.raises(ValueError, match="packed sequences cannot be cached by softmax attention"):
        model(tokens(1, 6), position_ids=positions, past_key_values=NoriaCache(model.config))


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (
            NoriaRetNetConfig,
            {"hidden_size": 48, "num_attention_heads": 7},
            r"`hidden_size` \(48\) is not a multiple of",
        ),
        (NoriaRetNetConfig, {"hidden_size": 48, "value_size": 50, "num_attention_heads": 4}, r"`value_size` \(50\)"),
        (NoriaRetNetConfig, {"num_attention_heads": 0}, "must be at least 1, not 0"),
        (NoriaRetNetConfig, {"hidden_size": 0}, "`hidden_size` must be at least 1, not 0"),
        (NoriaRetNetConfig, {"pad_token_id": 32000}, r"`pad_token_id` \(32000\) must lie in 0..31999"),
        (NoriaRoFormerConfig, {"head_dim": 7}, r"`head_dim` \(7\) must be even"),
        (NoriaLinearTransformerConfig, {"feature_map": "cube"}, "feature_map"),
        (NoriaLinearTransformerConfig, {"rotary": "both", "head_dim": 7}, r"`head_dim` \(7\) must be even"),
        (NoriaLinearTransformerConfig, {"rotary": "both", "feature_map": "softmax"}, "numerator"),
        (NoriaRetNetConfig, {"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_configurations(config_class, fields, message):
    with pytest.raises(Exception, match=message) as error:
        config_class(**fields)
    assert "Error" in type(error.value).__name__


def test_an_unknown_activation():
    with pytest.raises(ValueError, match="unknown activation 'cube': choose from"):
        NoriaRetNetModel(NoriaRetNetConfig(hidden_size=8, num_hidden_layers=1, hidden_act="cube"))


def test_fields_that_a_family_lacks_are_ignored_aloud(caplog):
    config = NoriaRetNetConfig(hidden_size=64, max_position_embeddings=77)
    assert "max_position_embeddings" not in config.to_dict()


def test_a_model_without_embedding(tokens):
    config = NoriaLinearTransformerConfig(vocab_size=0, hidden_size=16, num_hidden_layers=1)
    model = NoriaLinearTransformerModel(config).eval()
    assert model(inputs_embeds=torch.ones(1, 3, 16)).last_hidden_state.shape == (1, 3, 16)
    with pytest.raises(ValueError, match="has no embedding"):
        model(tokens(1, 3))
    with pytest.raises(ValueError, match="needs `vocab_size` of at least 1"):
        NoriaRetNetForCausalLM(NoriaRetNetConfig(vocab_size=0))


def test_a_bidirectional_model_continues_no_cache(tokens):
    config = NoriaLinearTransformerConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, bidirectional=True)
    model = NoriaLinearTransformerModel(config).eval()
    assert model(tokens(1, 3), use_cache=True).past_key_values is None
    with pytest.raises(ValueError, match="bidirectional"):
        model(tokens(1, 3), past_key_values=NoriaCache(config))
