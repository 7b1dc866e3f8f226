"""Law 10: checkpointing, carried state and seeds change nothing in training; the loss falls on real text."""

import pytest
import torch
from architectures import CAUSAL
from laws import cuts, gradients, over, ragged, same, same_gradients
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from noria import NoriaCache
from noria.data.texts import classics


@over(CAUSAL)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(entry, reentrant, tokens):
    model = entry.model().train()
    ids, mask = ragged([tokens(1, 9)[0], tokens(1, 5, 1)[0]], "left")
    plain = gradients(model, model(ids, attention_mask=mask, labels=ids).loss)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    embeds = model.get_input_embeddings()
    embeds.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    same_gradients(gradients(model, model(ids, attention_mask=mask, labels=ids).loss), plain)


@over(CAUSAL)
def test_autocast_trains(entry, tokens):
    """bfloat16 where torch finds it safe: the gradient points where that of float32 does."""
    model, ids = entry.model(dtype=torch.float32, initializer_range=0.1).train(), tokens(2, 20)
    expected = gradients(model, model(ids, labels=ids).loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    found = gradients(model, loss)
    assert found.keys() == expected.keys()
    flat = [torch.cat([part[name].flatten() for name in expected]) for part in (found, expected)]
    assert torch.cosine_similarity(*flat, dim=0) >= 0.9


def chunked_loss(model, ids, pieces):
    """The sum of the losses of consecutive chunks, through which one cache is carried with its graph."""
    cache, total, start = NoriaCache(model.config), 0, 0
    for piece in pieces:
        end = start + piece
        logits = model(ids[:, start:end], past_key_values=cache, use_cache=True).logits
        total = total + cross_entropy(logits.flatten(0, 1), (ids[:, start:end] * 7 % 61).flatten(), reduction="sum")
        start = end
    return total


@over(CAUSAL)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_carried_state_gives_the_gradient_of_the_whole(entry, checkpointing, tokens):
    model, ids = entry.model().train(), tokens(2, 24)
    whole = gradients(model, chunked_loss(model, ids, [24]))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if "reentrant carry" in entry.limits:
            with pytest.raises(ValueError, match="gradient checkpointing"):
                chunked_loss(model, ids, [12, 12])
            return
    for seed in range(2):
        same_gradients(gradients(model, chunked_loss(model, ids, cuts(24, seed))), whole, 1e-9)


@over(CAUSAL, "reentrant carry")
def test_reentrant_checkpointing_refuses_to_lose_the_gradient_of_the_state(entry, tokens):
    model, ids = entry.model().train(), tokens(2, 8)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        chunked_loss(model, ids, [4, 4])


@over(CAUSAL)
def test_dropout_is_drawn_from_the_seed(entry, tokens):
    model, ids = entry.model(dropout=0.5).train(), tokens(2, 6)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model(ids).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    same(model.eval()(ids).logits, model.eval()(ids).logits)


def text_ids(length: int) -> tuple[torch.Tensor, int]:
    """The first characters of the embedded classics, numbered by first appearance."""
    text = "".join(record.text for record in classics())[:length]
    numbers = {character: number for number, character in enumerate(dict.fromkeys(text))}
    return torch.tensor([numbers[character] for character in text]), len(numbers)


@over([entry for entry in CAUSAL if "-" not in entry.name])
def test_trainer_lowers_the_loss_on_real_text_the_same_way_twice(entry, tmp_path):
    ids, size = text_ids(2048)
    rows = [{"input_ids": row, "labels": row} for row in ids.view(-1, 64)]
    runs = []
    for _ in range(2):
        fields = {"vocab_size": size, "hidden_size": 32, "initializer_range": 0.02, "pad_token_id": None}
        model = entry.model(dtype=torch.float32, **fields).train()
        arguments = TrainingArguments(
            output_dir=tmp_path,
            max_steps=30,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=5,
            use_cpu=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        assert losses[-1] < losses[0] - 0.7
        runs.append((losses, [p.detach().clone() for p in model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(first, second) for first, second in zip(runs[0][1], runs[1][1], strict=True))
