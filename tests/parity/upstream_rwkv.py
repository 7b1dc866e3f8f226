"""The package `rwkv`'s side of the comparison: upstream_rwkv.py FAMILY PACKAGE write|read FOLDER, as upstream.py.

That package only computes. `write` makes files with the names and shapes that it reads, filled at random.
"""

import importlib
import os
import sys
from pathlib import Path

import torch
from cases import CASES, RWKV_SIZES, VOCABULARY
from safetensors.torch import save_file

LENGTH, TOGETHER = 24, 15
MIXES = {
    4: ("time_mix_", "kvr", "kr"),
    5: ("time_mix_", "kvrg", "kr"),
    6: ("time_maa_", "xwkvrg", "kr"),
    7: ("x_", "rwkvag", "k"),
}
# Of a tensor: its shape, mean and standard deviation.
Draw = tuple[tuple[int, ...], float, float]


def matrix(rows: int, columns: int) -> Draw:
    return (rows, columns), 0.0, columns**-0.5


def factor(rows: int, columns: int) -> Draw:
    """A matrix that is multiplied from the right."""
    return (rows, columns), 0.0, rows**-0.5


def norm(name: str, width: int) -> dict[str, Draw]:
    return {f"{name}.weight": ((width,), 1.0, 0.1), f"{name}.bias": ((width,), 0.0, 0.1)}


def recurrence(version: int, width: int, heads: int) -> dict[str, Draw]:
    """What a time mix has beside its matrices, its norm and the weights of the token before."""
    vector, per_head = (1, 1, width), (heads, width // heads)
    if version == 4:
        return {"time_decay": ((width,), -2.0, 2.0), "time_first": ((width,), -1.0, 0.5)}
    if version == 5:
        return {"time_decay": (per_head, -3.5, 1.5), "time_faaaa": (per_head, 0.0, 0.5)}
    if version == 6:
        return {
            "time_decay": (vector, -3.5, 1.5),
            "time_faaaa": (per_head, 0.0, 0.5),
            "time_maa_w1": factor(width, 5 * 12),
            "time_maa_w2": ((5, 12, width), 0.0, 12**-0.5),
            "time_decay_w1": factor(width, 20),
            "time_decay_w2": factor(20, width),
        }
    found = {"k_k": (vector, 0.7, 0.1), "k_a": (vector, 1.0, 0.1), "r_k": (per_head, 0.0, 0.1)}
    for letter, rank in (("w", 8), ("a", 7), ("v", 6), ("g", 16)):
        found |= {f"{letter}1": factor(width, rank), f"{letter}2": factor(rank, width)}
        if letter != "g":
            found[f"{letter}0"] = (vector, 0.0, 0.5)
    return found


def layer(version: int, width: int, inner: int, heads: int) -> dict[str, Draw]:
    prefix, time, channel = MIXES[version]
    gate = ("gate",) if version in (5, 6) else ()
    return {
        **norm("ln1", width),
        **norm("ln2", width),
        **(norm("att.ln_x", width) if version > 4 else {}),
        **{f"att.{prefix}{letter}": ((1, 1, width), 0.5, 0.25) for letter in time},
        **{f"ffn.{prefix}{letter}": ((1, 1, width), 0.5, 0.25) for letter in channel},
        **{f"att.{name}.weight": matrix(width, width) for name in ("receptance", "key", "value", "output", *gate)},
        **{f"att.{name}": drawn for name, drawn in recurrence(version, width, heads).items()},
        "ffn.key.weight": matrix(inner, width),
        "ffn.value.weight": matrix(width, inner),
        **({"ffn.receptance.weight": matrix(width, width)} if version < 7 else {}),
    }


def make_state(version: int, layers: int, width: int, inner: int, heads: int, dtype: str) -> dict[str, torch.Tensor]:
    draws = {
        "emb.weight": ((VOCABULARY, width), 0.0, 0.5),
        **norm("blocks.0.ln0", width),
        **norm("ln_out", width),
        "head.weight": matrix(VOCABULARY, width),
    }
    for number in range(layers):
        draws |= {f"blocks.{number}.{name}": drawn for name, drawn in layer(version, width, inner, heads).items()}
    precision = getattr(torch, dtype)
    return {name: (mean + std * torch.randn(shape)).to(precision) for name, (shape, mean, std) in draws.items()}


@torch.no_grad()
def save_outputs(version: int, file: Path, path: Path) -> None:
    """The logits of one text, of which the first tokens go in together and the others one by one."""
    os.environ |= {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": str(int(version == 7))}
    import rwkv.model

    # The switches are read on import; one of them decides which versions the class knows.
    model = importlib.reload(rwkv.model).RWKV(str(file.with_suffix("")), "cpu fp32")
    ids = torch.randint(1, VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(0))
    logits, state = model.forward(ids[:TOGETHER].tolist(), None, full_output=True)
    rows = [logits]
    for token in ids[TOGETHER:].tolist():
        logits, state = model.forward([token], state)
        rows.append(logits[None])
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones(1, LENGTH, dtype=torch.int64)}
    save_file(inputs | {"logits": torch.cat(rows)[None].float()}, path)


def main(family: str, package: str, task: str, folder: Path) -> None:
    for number, (name, (version, options)) in enumerate(CASES[family][package].items()):
        place = folder / name
        if task == "write":
            torch.manual_seed(number)
            (place / "source").mkdir(parents=True)
            torch.save(make_state(version, **{**RWKV_SIZES, **options}), place / "source" / "model.pth")
            save_outputs(version, place / "source" / "model.pth", place / "written.safetensors")
        else:
            save_outputs(version, place / "back" / "model.pth", place / "read.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]))
