"""Encoders of one shape, 4 layers of 768: RoFormer with softmax and with linear attention, against transformers' two.

Forward is the encoder without a head, on one row of real tokens; a training step is that of the masked language model,
with its loss, backward and AdamW. BERT and our RoFormer run on torch's sdpa, transformers' RoFormer has no other
attention than its own.
"""

from __future__ import annotations

import torch
from harness import compare, progress, publish, ratio, start, table
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, RoFormerConfig, RoFormerForMaskedLM

from noria import NoriaRoFormerConfig, NoriaRoFormerForMaskedLM

LENGTHS = (128, 512, 2048)
LONG = 4096
VOCABULARY = 12000
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
OURS = ("noria", "noria, linear")


def build(longest: int) -> dict[str, PreTrainedModel]:
    """The four models with random weights; the peers' tables are as long as the longest text."""
    torch.manual_seed(0)
    peers = SIZES | {
        "max_position_embeddings": longest,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    models = {
        "BERT": BertForMaskedLM._from_config(BertConfig(**peers), attn_implementation="sdpa"),
        "RoFormer": RoFormerForMaskedLM(RoFormerConfig(**peers)),
        "noria": NoriaRoFormerForMaskedLM(NoriaRoFormerConfig(**SIZES)),
        "noria, linear": NoriaRoFormerForMaskedLM(NoriaRoFormerConfig(**SIZES, attention="linear")),
    }
    return {name: model.eval() for name, model in models.items()}


def tokens(length: int) -> Tensor:
    torch.manual_seed(length)
    return torch.randint(VOCABULARY, (1, length))


def forward(model: PreTrainedModel, length: int):
    ids, encoder = tokens(length), model.base_model

    @torch.no_grad()
    def run() -> None:
        encoder(input_ids=ids)

    return run


def training_step(model: PreTrainedModel, length: int, optimizer: torch.optim.Optimizer):
    ids = tokens(length)

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    return step


def measure(what: str, models: dict[str, PreTrainedModel], lengths: tuple[int, ...], seconds: float) -> str:
    rows = []
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-5) for name, model in models.items()}
    for length in lengths:
        if what == "forward":
            runs = {name: forward(model, length) for name, model in models.items()}
        else:
            runs = {name: training_step(model, length, optimizers[name]) for name, model in models.items()}
        times = compare(runs, seconds)
        row = [f"{length:,}", str(times["BERT"]), str(times["RoFormer"])]
        for name in OURS:
            against = [ratio(times[name], times[peer]) for peer in ("BERT", "RoFormer", "noria")]
            row += [str(times[name]), *(f"**{part}**" for part in against[: 2 + (name != "noria")])]
        rows.append(row)
        progress(f"{what}: {' '.join(row)}")
    header = ["L", "BERT, ms", "RoFormer, ms", "noria, ms", "x BERT", "x RoFormer"]
    return table([*header, "noria linear, ms", "x BERT", "x RoFormer", "x noria"], rows)


def main() -> None:
    arguments = start("encoders", __doc__)
    lengths, seconds = (LENGTHS[:1], 1.0) if arguments.quick else ((*LENGTHS, LONG), 20.0)
    models = build(max(lengths))
    parts = ["Forward:", measure("forward", models, lengths, seconds)]
    for model in models.values():
        model.train()
    parts += ["Training step:", measure("training", models, lengths[: len(LENGTHS)], seconds)]
    publish("encoders", arguments, "\n\n".join(parts))


if __name__ == "__main__":
    main()
