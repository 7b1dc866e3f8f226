"""Laws 4, 5, 14: padding, packing and pooling change nothing."""

import pytest
import torch
import torch.nn.functional as F
from architectures import CAUSAL, CLASSIFIERS, MASKED
from laws import LOSS_TOLERANCE, gradients, over, packed, ragged, same, same_gradients

from noria import NoriaCache

LENGTHS = (9, 4, 1, 13)


def rows_of(tokens):
    return [tokens(1, length, seed)[0] for seed, length in enumerate(LENGTHS)]


def mean_loss(model, rows):
    """The loss of the rows, each alone, as a mean over all predicted tokens."""
    losses = [model(row[None], labels=row[None]).loss * (len(row) - 1) for row in rows if len(row) > 1]
    return sum(losses) / sum(len(row) - 1 for row in rows)


@over(CAUSAL)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_is_alone(entry, side, tokens):
    model, rows = entry.model(), rows_of(tokens)
    ids, mask = ragged(rows, side)
    logits = model(ids, attention_mask=mask).logits
    for i, row in enumerate(rows):
        same(logits[i][mask[i].bool()], model(row[None]).logits[0])


@over(CAUSAL)
def test_batch_of_one_is_masked_too(entry, tokens):
    model, row = entry.model(), tokens(1, 6)
    ids = torch.cat([torch.full((1, 3), 9), row], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    same(model(ids, attention_mask=mask).logits[:, 3:], model(row).logits)


@over(CAUSAL)
def test_what_stands_at_padding_depends_on_no_other_padding(entry, tokens):
    model, row = entry.model(), torch.cat([tokens(1, 5), torch.full((1, 4), 9)], dim=1)
    mask = torch.tensor([[1] * 5 + [0] * 4])
    more, wider = F.pad(row, (32, 0), value=9), F.pad(mask, (32, 0))
    same(model(more, attention_mask=wider).logits[:, -1], model(row, attention_mask=mask).logits[:, -1])


@over(CAUSAL)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_loss_and_gradients_are_those_of_the_rows(entry, side, tokens):
    model, rows = entry.model(), rows_of(tokens)
    ids, mask = ragged(rows, side)
    loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    alone = mean_loss(model, rows)
    same(loss, alone, LOSS_TOLERANCE)
    same_gradients(gradients(model, loss), gradients(model, alone))


@over(CAUSAL)
def test_padding_gets_no_gradient(entry, tokens):
    model, rows = entry.model(), rows_of(tokens)
    ids, mask = ragged(rows, "left")
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    labels = ids.masked_fill(mask == 0, -100)
    model(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss.backward()
    assert embeds.grad[mask == 0].abs().max() == 0
    assert embeds.grad[mask == 1].abs().max() > 0


@over(CAUSAL)
def test_padded_generation_is_alone(entry, tokens):
    model, rows = entry.model(), rows_of(tokens)
    ids, mask = ragged(rows, "left")
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for i, row in enumerate(rows):
        assert torch.equal(batch[i, -6:], model.generate(row[None], max_new_tokens=6, do_sample=False)[0, -6:])


def packing_arguments(kind: str, rows, positions):
    if kind == "position_ids":
        return {"position_ids": positions}
    if kind == "seq_idx":
        return {"seq_idx": torch.repeat_interleave(torch.tensor([len(row) for row in rows]))[None]}
    ends = torch.tensor([len(row) for row in rows]).cumsum(0)
    return {"cu_seq_lens_q": torch.cat([torch.zeros(1, dtype=torch.int64), ends]).int()}


@over(CAUSAL)
@pytest.mark.parametrize("kind", ["position_ids", "cu_seq_lens_q", "seq_idx"])
def test_packed_is_separate(entry, kind, tokens):
    model, rows = entry.model(), rows_of(tokens)
    ids, positions = packed(rows)
    out = model(ids, labels=ids, use_cache=False, **packing_arguments(kind, rows, positions))
    same(out.logits[0], torch.cat([model(row[None]).logits[0] for row in rows]))
    alone = mean_loss(model, rows)
    same(out.loss, alone, LOSS_TOLERANCE)
    same_gradients(gradients(model, out.loss), gradients(model, alone))


@over(CAUSAL)
def test_packed_rows_may_be_padded(entry, tokens):
    model, rows = entry.model(), rows_of(tokens)
    ids, positions = packed(rows[:2])
    other = rows[3]
    ids, mask = ragged([ids[0], other], "right")
    positions = torch.cat(
        [
            torch.nn.functional.pad(positions, (0, ids.shape[1] - positions.shape[1])),
            torch.nn.functional.pad(torch.arange(len(other)), (0, ids.shape[1] - len(other)))[None],
        ]
    )
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    same(logits[0, : len(rows[0])], model(rows[0][None]).logits[0])
    same(logits[0, len(rows[0]) : mask[0].sum()], model(rows[1][None]).logits[0])
    same(logits[1, : len(other)], model(other[None]).logits[0])


@over(CAUSAL, "packs in a cache")
@pytest.mark.parametrize("cut", [1, 5, 9, 10, 13])
def test_packed_and_cut_is_separate(entry, cut, tokens):
    """The state of a cut pack goes on with the sequence that was cut, and is empty where another begins."""
    model, rows = entry.model(), rows_of(tokens)
    ids, positions = packed(rows)
    cache = NoriaCache(model.config)
    parts = [
        model(ids[:, part], position_ids=positions[:, part], past_key_values=cache, use_cache=True).logits[0]
        for part in (slice(0, cut), slice(cut, cut + 1), slice(cut + 1, None))
    ]
    same(torch.cat(parts), torch.cat([model(row[None]).logits[0] for row in rows]))


@over(MASKED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_bidirectional_output_ignores_padding(entry, side, tokens):
    model, rows = entry.model("ForMaskedLM"), rows_of(tokens)
    ids, mask = ragged(rows, side)
    logits = model(ids, attention_mask=mask).logits
    for i, row in enumerate(rows):
        same(logits[i][mask[i].bool()], model(row[None]).logits[0])


@over(MASKED)
def test_bidirectional_sees_the_future_and_packs(entry, tokens):
    model, rows = entry.model("ForMaskedLM"), rows_of(tokens)
    changed = rows[0].clone()
    changed[-1] = changed[-1] % 60 + 1
    assert (model(changed[None]).logits - model(rows[0][None]).logits)[0, 0].abs().max() > 1e-6
    ids, positions = packed(rows)
    same(model(ids, position_ids=positions).logits[0], torch.cat([model(row[None]).logits[0] for row in rows]))


@over(CLASSIFIERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_finds_the_real_token(entry, side, tokens):
    model, rows = entry.model("ForSequenceClassification", num_labels=3), rows_of(tokens)
    ids, mask = ragged(rows, side)
    labels = torch.tensor([0, 1, 2, 0])
    out = model(ids, attention_mask=mask, labels=labels)
    alone = torch.cat([model(row[None]).logits for row in rows])
    same(out.logits, alone)
    same(out.loss, torch.nn.functional.cross_entropy(alone, labels), LOSS_TOLERANCE)
    by_token, _ = ragged(rows, "right", fill=0)
    if side == "right" and model.model.causal:
        same(model(by_token).logits, alone)
