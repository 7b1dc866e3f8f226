"""The configuration of taming's second stage, Net2NetTransformer, from its arguments and its tensors."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GPT2Config

from ..configuration.vqgan_prior import TOKEN_ORDERS
from ..modeling.image.token_order import list_places
from .format import layer_count
from .raw_bytes import same_bytes
from .taming_rules import CONDITION, FIRST, TRANSFORMER
from .taming_settings import Constructor
from .taming_vqgan import need, vqgan_fields

GPT = (
    "vocab_size",
    "block_size",
    "n_layer",
    "n_head",
    "n_embd",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
    "n_unmasked",
)
ARGUMENTS = (
    "transformer_config",
    "first_stage_config",
    "cond_stage_config",
    "permuter_config",
    "downsample_cond_size",
    "pkeep",
    "sos_token",
    "unconditional",
    # Training and the upstream's own book-keeping.
    "target",
    "base_learning_rate",
    "ckpt_path",
    "ignore_keys",
    "first_stage_key",
    "cond_stage_key",
)
UNCONDITIONAL, AGAIN = "__is_unconditional__", "__is_first_stage__"
CONDITIONS = {
    UNCONDITIONAL: "none",
    "SOSProvider": "none",
    "Labelator": "class",
    "CoordStage": "coordinates",
    "DummyCondStage": "tokens",
    AGAIN: "again",
}
FORWARD = "permuter.forward_shuffle_idx"


def prior_fields(settings: Constructor, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of NoriaVQGANPriorConfig."""
    settings.check_names(ARGUMENTS)
    transformer, stage = settings.part("transformer_config"), settings.part("first_stage_config")
    prior = gpt_config(transformer, below(tensors, TRANSFORMER))
    kind, source = condition_kind(settings, tensors)
    order = tensors.get(FORWARD)
    grid = grid_sides(stage, tensors, prior, kind) if order is None else ordered_sides(settings, len(order))
    height, width = grid
    size = settings.take("downsample_cond_size", default=-1)
    return {
        "prior_config": prior,
        "vqgan_config": vqgan_fields(stage, below(tensors, FIRST), height if height == width else None),
        **condition_fields(kind, settings, source, tensors, prior.n_positions - height * width),
        "grid_size": grid,
        "condition_size": None if size < 0 else size,
        "token_order": "row" if order is None else name_of(tuple(order.tolist()), height, width),
        "keep_probability": settings.take("pkeep", default=1.0),
        "num_unmasked": unmasked(transformer, tensors),
    }


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def gpt_config(options: Constructor, tensors: Mapping[str, Tensor]) -> GPT2Config:
    """minGPT as GPT-2. How many heads it has, no tensor tells."""
    options.check_names((*GPT, "target"))
    if options.target not in ("", "GPT"):
        options.wrong.append(f"target is {options.target!r}: only GPT can be converted")
    embedding, positions = need(tensors, "tok_emb.weight"), need(tensors, "pos_emb")
    width, inner = embedding.shape[1], need(tensors, "blocks.0.mlp.0.weight").shape[0]
    heads = options.take("n_head")
    if heads and width % heads:
        options.wrong.append(f"n_head is {heads}, which does not divide the width {width}")
    return GPT2Config(
        vocab_size=options.take("vocab_size", embedding.shape[0]),
        n_positions=options.take("block_size", positions.shape[1]),
        n_embd=options.take("n_embd", width),
        n_layer=options.take("n_layer", layer_count(tensors, "blocks.")),
        n_head=heads or 1,
        n_inner=None if inner == 4 * width else inner,
        **{name: options.take(name, default=0.0) for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop")},
        activation_function="gelu",
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def unmasked(options: Constructor, tensors: Mapping[str, Tensor]) -> int:
    """How many of the first tokens see one another, as the stored masks tell where there are any."""
    mask = tensors.get(f"{TRANSFORMER}blocks.0.attn.mask")
    if mask is None:
        return options.take("n_unmasked", default=0)
    seen = int(mask[0, 0, 0].sum())
    stated, _ = options.stated("n_unmasked")
    # A first token that sees only itself is not unmasked, or alone so, which is the same.
    return options.take("n_unmasked", seen if seen > 1 or stated not in (None, 0, 1) else None, 0)


def condition_kind(settings: Constructor, tensors: Mapping[str, Tensor]) -> tuple[str, Constructor]:
    """What stands before the image's codes, and the arguments of what makes it."""
    stage = settings.part("cond_stage_config")
    if settings.take("unconditional", default=False):
        return "none", settings
    first, second = below(tensors, FIRST), below(tensors, CONDITION)
    kind = "again" if not stage.target and second and repeats(first, second) else CONDITIONS.get(stage.target, "codes")
    if kind == "codes" and not second:
        settings.missing.append("cond_stage_config")
    return kind, settings if stage.target == UNCONDITIONAL else stage


def condition_fields(
    kind: str, settings: Constructor, stage: Constructor, tensors: Mapping[str, Tensor], room: int
) -> dict[str, Any]:
    """The condition, which is given by `stage`; `room` positions are left for it."""
    if kind == "none":
        return {"condition": kind, "sos_token": stage.take("sos_token", default=0)}
    if kind == "class":
        return {"condition": kind, "num_labels": stage.take("n_classes")}
    if kind == "coordinates":
        levels, factor = stage.take("n_embed"), stage.take("down_factor")
        return {"condition": kind, "coordinate_levels": levels, "coordinate_downsampling": factor}
    if kind == "tokens":
        return {"condition": kind, "condition_length": room}
    second = below(tensors, CONDITION)
    if kind == "again" or not second:
        return {"condition": "codes"}
    # A last code that is only written needs no position.
    side = side_of(room) or side_of(room + 1)
    return {"condition": "codes", "condition_vqgan_config": vqgan_fields(stage, second, side)}


def side_of(codes: int) -> int | None:
    """The side of a square map of so many codes; None where there is none."""
    side = math.isqrt(max(codes, 0))
    return side if side and side**2 == codes else None


def repeats(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(same_bytes(first[name], tensor) for name, tensor in second.items())


def ordered_sides(settings: Constructor, codes: int) -> list[int]:
    """Height and width of the map whose `codes` the permuter orders: a square, unless it is told otherwise."""
    permuter = settings.part("permuter_config")
    height, width = (permuter.take(name, default=side_of(codes) or 0) for name in ("H", "W"))
    if height * width != codes:
        permuter.wrong.append(f"H and W are {height} and {width}, but the permuter orders {codes} codes")
        return [1, codes]
    return [height, width]


def grid_sides(stage: Constructor, tensors: Mapping[str, Tensor], prior: GPT2Config, condition: str) -> list[int]:
    """Height and width of the map of codes: by the size of images, or as large as the positions allow."""
    factor = 2 ** (layer_count(tensors, f"{FIRST}decoder.up.") - 1)
    size, _ = Constructor(stage.given.get("ddconfig"), stage.from_file.get("ddconfig")).stated("resolution")
    room = prior.n_positions // 2 if condition in ("coordinates", "codes", "again") else prior.n_positions
    side = math.isqrt(room)
    side = min(size // factor, side) if size else side
    return [side, side]


def name_of(order: tuple[int, ...], height: int, width: int) -> str | list[int]:
    """The order by its name, or as it is where it has none."""
    names = (name for name in TOKEN_ORDERS if list_places(name, height, width, seed=1) == order)
    return next(names, list(order))
