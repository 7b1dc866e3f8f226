"""Whether an RWKV folder of transformers was saved with halved weights, so far as the weights can tell.

A forward pass in evaluation mode divides the last weights of both branches of layer l by 2^(l // rescale_every) in
place, and what is saved thereafter is divided. Nothing in the folder says so. The division is exact and leaves no
trace in a tensor of its own; but the weights' size then drops by half between layers where that number grows, and
nowhere else. Sizes of trained layers differ from one to the next: where they differ too much, this cannot be told.
"""

import math
from collections.abc import Mapping

from torch import Tensor

HALVED = ("blocks.{}.attention.output.weight", "blocks.{}.feed_forward.value.weight")


def is_halved(tensors: Mapping[str, Tensor], layers: int, every: int) -> bool | None:
    """Whether the weights of `layers` layers have been halved after every `every` of them; None if none can tell.

    Compares how much (in powers of two) the size of the weights changes where it would be halved with how much it
    changes elsewhere; with the decision half way between 0 and -1, what they vary elsewhere must not reach across it.
    """
    steps, jumps = [], []
    for name in HALVED:
        sizes = [tensors[name.format(layer)].double().square().mean().sqrt().item() for layer in range(layers)]
        if not all(size > 0 and math.isfinite(size) for size in sizes):
            return None
        for layer in range(1, layers):
            change = math.log2(sizes[layer] / sizes[layer - 1])
            (steps if layer % every else jumps).append(change)
    if not steps or not jumps:
        return None
    usual = sorted(steps)[len(steps) // 2]
    spread = max(abs(step - usual) for step in steps)
    drops = [usual - jump for jump in jumps]
    if all(drop - spread > 0.5 for drop in drops):
        return True
    return False if all(drop + spread < 0.5 for drop in drops) else None
