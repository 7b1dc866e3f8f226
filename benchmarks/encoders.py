"""Encoders of one shape: RoFormer with softmax and with linear attention, against transformers' RoFormer and BERT.

Four layers of 384 and of 768, the widths of the published small and base models, with heads of 64.

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
WIDTHS = (384, 768)
OURS = ("noria", "noria, linear")


def sizes_of(width: int) -> dict[str, int]:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": width, "num_hidden_layers": 4}
    return sizes | {"num_attention_heads": width // 64, "intermediate_size": 4 * width}


def build(longest: int, width: int) -> dict[str, PreTrainedModel]:
    """The four models with random weights; the peers' tables are as long as the longest text."""
    torch.manual_seed(0)
    sizes = sizes_of(width)
    peers = sizes | {
        "max_position_embeddings": longest,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    models = {
        "BERT": BertForMaskedLM._from_config(BertConfig(**peers), attn_implementation="sdpa"),
        "RoFormer": RoFormerForMaskedLM(RoFormerConfig(**peers)),
        "noria": NoriaRoFormerForMaskedLM(NoriaRoFormerConfig(**sizes)),
        "noria, linear": NoriaRoFormerForMaskedLM(NoriaRoFormerConfig(**sizes, attention="linear")),
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
    lengths, seconds = (LENGTHS[:1], 1.0) if arguments.quick else ((*LENGTHS, LONG), 12.0)
    parts = []
    for width in WIDTHS:
        models = build(max(lengths), width)
        parts += [f"Forward, {width} wide:", measure("forward", models, lengths, seconds)]
        for model in models.values():
            model.train()
        parts += [f"Training step, {width} wide:", measure("training", models, lengths[: len(LENGTHS)], seconds)]
    publish("encoders", arguments, "\n\n".join(parts))


if __name__ == "__main__":
    main()
