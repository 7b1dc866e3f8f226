"""The embedded classics as training rows, and how well a model knows the held-out part of them.

A record becomes `<bos> genre \\n text <eos>`: the genre's line lets a prompt choose what is written. Losses are
counted over the characters of `text` alone, in nats per character, for the model and for the baseline alike.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.texts import Record


def prompt(genre: str) -> str:
    """What a text of this genre begins with."""
    return f"{genre}\n"


def encode(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids of each record, from <bos> to <eos>."""
    return [[*tokenizer(prompt(r.genre) + r.text).input_ids, tokenizer.eos_token_id] for r in records]


class Blocks(Dataset):
    """All records one after another, cut into rows of `length` tokens; nothing is padded.

    The order of the records is drawn from `seed`, so that two runs see the same rows. Raises ValueError where the
    records do not fill one row.
    """

    def __init__(self, rows: Sequence[Sequence[int]], length: int, seed: int = 0) -> None:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        stream = torch.tensor([token for index in order for token in rows[index]])
        if len(stream) < length:
            raise ValueError(f"{len(stream)} tokens of text do not fill one row of {length}; use a smaller length")
        self.rows = stream[: len(stream) // length * length].view(-1, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def unigram_baseline(train: Sequence[Record], held_out: Sequence[Record]) -> float:
    """Nats per character of `held_out` for whom knows the frequencies of characters in `train` and nothing else.

    Laplace's rule over the characters of both parts: p(c) = (count(c) + 1) / (total + number of characters).
    """
    counts = Counter(c for record in train for c in record.text)
    text = [c for record in held_out for c in record.text]
    if not text:
        raise ValueError("the held-out part has no characters, so there is nothing to measure")
    total = counts.total() + len(counts.keys() | set(text))
    return -sum(math.log((counts[c] + 1) / total) for c in text) / len(text)


@torch.inference_mode()
def held_out_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    tokens_per_batch: int = 4096,
) -> float:
    """The model's mean loss over the characters of the records, in nats, each record read from its beginning.

    Rows of similar length share a batch of at most `tokens_per_batch` tokens, padding included.
    """
    training = model.training
    model.eval()
    skipped = {r.genre: len(tokenizer(prompt(r.genre)).input_ids) for r in records}
    pairs = zip(encode(records, tokenizer), (skipped[r.genre] for r in records), strict=True)
    rows = sorted(((ids[:-1], begin) for ids, begin in pairs), key=lambda row: -len(row[0]))
    total, characters = 0.0, 0
    while rows:
        size = max(1, tokens_per_batch // len(rows[0][0]))
        nats, count = _batch_loss(model, rows[:size], tokenizer.pad_token_id)
        total, characters, rows = total + nats, characters + count, rows[size:]
    model.train(training)
    return total / characters


def _batch_loss(model: PreTrainedModel, rows: Sequence[tuple[list[int], int]], pad: int) -> tuple[float, int]:
    length = len(rows[0][0])
    ids = torch.tensor([row + [pad] * (length - len(row)) for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in rows])
    scored = torch.tensor([[begin <= i < len(row) for i in range(length)] for row, begin in rows])
    labels = ids.masked_fill(~scored, -100)[:, 1:]
    logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels.flatten().to(model.device), reduction="sum"
    )
    return loss.item(), int(scored[:, 1:].sum())
