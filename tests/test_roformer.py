"""RoFormer's versions, its masks in every form that transformers knows, and the heads of an encoder."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from laws import LOSS_TOLERANCE, ragged, same
from torch import Tensor

import noria
from noria import ARCHITECTURES, NoriaRoFormerConfig

HEADS = ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]


def make(head: str = "ForMaskedLM", implementation: str = "sdpa", **fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = NoriaRoFormerConfig(**sizes | {"initializer_range": 0.3, "pad_token_id": 0} | fields)
    model_class = ARCHITECTURES["noria_roformer"].models[head]
    return model_class._from_config(config, attn_implementation=implementation).double().eval()


def first(outputs) -> Tensor:
    """All that a head says of each token or row, in one tensor."""
    if "start_logits" in outputs:
        return torch.stack((outputs.start_logits, outputs.end_logits), dim=-1)
    return outputs[0]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masks_in_every_form_mean_the_same(implementation, tokens) -> None:
    """A boolean 4-D mask is what transformers' own RoFormer 5.23 gets wrong without a word."""
    model, ids = make(implementation=implementation), tokens(3, 8)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 2 + [0] * 6])
    expected = model(ids, attention_mask=mask).logits
    visible = mask.bool()[:, None, None, :].expand(-1, 1, 8, -1)
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    for form in (mask.bool(), mask.double(), visible, additive, additive.double(), visible.long()):
        same(model(ids, attention_mask=form).logits, expected)  # at padding too: it counts on from the last real token
    for row, real in zip(range(3), (8, 5, 2), strict=True):
        same(expected[row, :real], model(ids[row : row + 1, :real]).logits[0])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_head(head, side, tokens) -> None:
    model, rows = make(head, num_labels=3), [tokens(1, length, seed=length)[0] for length in (7, 4, 9)]
    ids, mask = ragged(rows, side)
    found = first(model(ids, attention_mask=mask))
    for row, result, real in zip(rows, found, mask.bool(), strict=True):
        alone = first(model(row[None]))[0]
        same(result if result.dim() == 1 else result[real], alone)


def test_losses_are_their_definitions(tokens) -> None:
    ids, model = tokens(2, 7), make("ForTokenClassification", num_labels=3)
    labels = torch.tensor([[0, 1, 2, -100, 1, 0, 2]] * 2)
    logits = model(ids).logits
    expected = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
    same(model(ids, labels=labels).loss, expected, LOSS_TOLERANCE)

    model, starts, ends = make("ForQuestionAnswering"), torch.tensor([1, 0]), torch.tensor([3, 6])
    out = model(ids, start_positions=starts, end_positions=ends)
    expected = (F.cross_entropy(out.start_logits, starts) + F.cross_entropy(out.end_logits, ends)) / 2
    same(out.loss, expected, LOSS_TOLERANCE)
    with pytest.raises(ValueError, match="both"):
        model(ids, start_positions=starts)

    model, choices = make("ForMultipleChoice"), tokens(6, 5).view(2, 3, 5)
    out = model(choices, labels=torch.tensor([2, 0]))
    alone = torch.stack([model(choices[:, i : i + 1]).logits[:, 0] for i in range(3)], dim=1)
    same(out.logits, alone)
    same(out.loss, F.cross_entropy(alone, torch.tensor([2, 0])), LOSS_TOLERANCE)
    with pytest.raises(ValueError, match="choices"):
        model(ids)


def test_padded_choices_are_each_alone(tokens) -> None:
    model, rows = make("ForMultipleChoice"), [tokens(1, length, seed=length)[0] for length in (7, 4, 9)]
    ids, mask = ragged(rows, "right")
    found = model(ids[None], attention_mask=mask[None], token_type_ids=torch.zeros_like(ids)[None]).logits[0]
    same(found, torch.cat([model(row[None, None]).logits[0] for row in rows]))


def test_a_causal_trunk_pools_its_last_token(tokens) -> None:
    model, ids = make("ForSequenceClassification", bidirectional=False), tokens(2, 6)
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 61
    assert (model(changed).logits - model(ids).logits).abs().min() > 1e-6
    hidden = model.model(ids).last_hidden_state
    same(model(ids).logits, model.classifier(hidden[:, -1]))


def test_version_two(tokens) -> None:
    model = make(version=2)
    names = {name.split(".", 1)[1] for name in model.state_dict() if name != "lm_head.decoder.weight"}
    assert not any(name.endswith("bias") or "norm" in name for name in names)
    assert type(model.model.layers[0].mixer_norm).__name__ == "RMSNorm"
    hidden = model.model(tokens(2, 5)).last_hidden_state
    same(hidden.square().mean(-1), torch.ones(2, 5).double(), 1e-6)
    same(model(tokens(2, 5)).logits, hidden @ model.model.embed_tokens.weight.T)
    with pytest.raises(StrictDataclassError, match=r"`embedding_size` \(12\) must be `hidden_size` \(24\)"):
        NoriaRoFormerConfig(version=2, hidden_size=24, embedding_size=12)


def test_version_two_draws_its_own_weights() -> None:
    config = NoriaRoFormerConfig(
        version=2, hidden_size=128, num_hidden_layers=4, vocab_size=400, intermediate_size=512
    )
    torch.manual_seed(0)
    model = noria.NoriaRoFormerForMaskedLM(config)
    for weight in (model.model.layers[1].mixer.q_proj.weight, model.model.layers[2].mlp.down_proj.weight):
        expected = (weight.shape[1] * 4) ** -0.5
        assert abs(weight.std().item() / expected - 1) < 0.05
        assert weight.abs().max() <= 2 * 1.14 * expected
    assert abs(model.model.embed_tokens.weight.std().item() / (128 * 4) ** -0.5 - 1) < 0.05


def test_a_width_of_its_own_for_embeddings(tokens) -> None:
    model = make(embedding_size=10)
    assert model.model.embed_tokens.weight.shape == (61, 10)
    assert model.lm_head.decoder.weight is model.model.embed_tokens.weight
    assert model(tokens(2, 5)).logits.shape == (2, 5, 61)
    model.resize_token_embeddings(70)
    assert model(tokens(2, 5)).logits.shape == (2, 5, 70)
    assert model.lm_head.decoder.bias.shape == (70,)


@pytest.mark.parametrize("length", [513, 1200])
def test_any_length_works(length, tokens) -> None:
    model, ids = make(max_position_embeddings=16, num_hidden_layers=1), tokens(1, length)
    shifted = torch.arange(length)[None] + 777
    same(model(ids, position_ids=shifted).logits, model(ids).logits, 1e-9)


def test_values_rotate_where_asked(tokens) -> None:
    ids = tokens(1, 6)
    plain, turned = make(rotary_value=False), make(rotary_value=True)
    turned.load_state_dict(plain.state_dict())
    assert (plain(ids).logits - turned(ids).logits).abs().max() > 1e-3
    # With values rotated too, a shift of all positions shows.
    moved = turned(ids, position_ids=torch.arange(6)[None] + 3).logits
    assert (moved - turned(ids).logits).abs().max() > 1e-3


def test_types_are_zero_unless_given(tokens) -> None:
    model, ids = make(), tokens(2, 5)
    same(model(ids).logits, model(ids, token_type_ids=torch.zeros_like(ids)).logits)
    assert (model(ids, token_type_ids=torch.ones_like(ids)).logits - model(ids).logits).abs().max() > 1e-3
