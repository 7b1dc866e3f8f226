"""Rotary positions: what turning queries and keys costs, and its share of a RoFormer layer, 12 heads of 64.

ours        `Rotary` or `RotaryHalf`: q and k turned, angles given
sums        q and k by sums of strided halves, stacked (interleaved) or with `rotate_half`, as transformers' Llama
layer       a whole RoFormer layer, 768 wide, of which `ours` is a part

Queries and keys lie in memory as projections leave them, (t h d).
"""

from __future__ import annotations

from functools import partial

import torch
from harness import Times, compare, progress, publish, ratio, start, table
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from noria import NoriaRoFormerConfig, NoriaRoFormerModel
from noria.modeling.position.rotary import Rotary, rotate_pairs
from noria.modeling.position.rotary_half import RotaryHalf
from noria.modeling.state import Context

HEADS, WIDTH = 12, 64
LENGTHS = (512, 2048)


def stacked(position: Rotary, q: Tensor, k: Tensor, context: Context) -> list[Tensor]:
    angles = position.angles(torch.float32, q.device, context)._replace(turns=None)
    return [rotate_pairs(x.float(), angles).to(x.dtype) for x in (q, k)]


def halves(position: Rotary, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    angles = position.angles(torch.float32, q.device, context)
    cos, sin = (torch.cat((x, x), dim=-1)[:, 0].to(q.dtype) for x in (angles.cos, angles.sin))
    return apply_rotary_pos_emb(q, k, cos, sin)


def make_layer() -> NoriaRoFormerModel:
    sizes = {"hidden_size": HEADS * WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 1, "vocab_size": 0}
    return NoriaRoFormerModel(NoriaRoFormerConfig(**sizes)).eval()


def race(length: int, dtype: torch.dtype, seconds: float) -> dict[str, Times]:
    torch.manual_seed(length)
    q, k = (torch.randn(1, length, HEADS, WIDTH).to(dtype).transpose(1, 2) for _ in range(2))
    x, layer, context = (
        torch.randn(1, length, HEADS * WIDTH).to(dtype),
        make_layer().to(dtype),
        Context(torch.arange(length)[None]),
    )
    candidates = {
        "rotary, ours": partial(Rotary(WIDTH).rotate, q, k, context),
        "rotary, sums": partial(stacked, Rotary(WIDTH), q, k, context),
        "rotary_half, ours": partial(RotaryHalf(WIDTH).rotate, q, k, context),
        "rotary_half, sums": partial(halves, RotaryHalf(WIDTH), q, k, context),
        "layer": lambda: layer(inputs_embeds=x),
    }
    with torch.inference_mode():
        return compare(candidates, seconds)


def measure(lengths: tuple[int, ...], seconds: float) -> str:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for length in lengths:
            times = race(length, dtype, seconds)
            layer = times.pop("layer")
            for name, found in times.items():
                share = f"{found.median / layer.median:.2%}"
                against = ratio(found, times[f"{name.split(',')[0]}, sums"])
                rows.append([f"{length:,}", str(dtype).removeprefix("torch."), name, str(found), against, share])
            rows.append([f"{length:,}", str(dtype).removeprefix("torch."), "layer", str(layer), "", ""])
            progress(" ".join(rows[-1]))
    return table(["L", "dtype", "what", "ms", "x sums", "of the layer"], rows)


def main() -> None:
    arguments = start("rotary", __doc__)
    lengths = LENGTHS[:1] if arguments.quick else LENGTHS
    publish("rotary", arguments, measure(lengths, 0.5 if arguments.quick else 6.0))


if __name__ == "__main__":
    main()
