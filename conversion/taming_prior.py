"""The configuration of taming's second stage, Net2NetTransformer, from its arguments and its tensors."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GPT2Config

from ..configuration.vqgan import NoriaVQGANConfig
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
    AGAIN: "codes",
}
FORWARD = "permuter.forward_shuffle_idx"


def prior_fields(settings: Constructor, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of NoriaVQGANPriorConfig."""
    settings.check_names(ARGUMENTS)
    prior = gpt_config(settings.part("transformer_config"), below(tensors, TRANSFORMER))
    condition, second = condition_fields(settings, below(tensors, FIRST), below(tensors, CONDITION))
    stage = settings.part("first_stage_config")
    order = tensors.get(FORWARD)
    grid = grid_sides(stage, tensors, prior, condition) if order is None else ordered_sides(settings, len(order))
    height, width = grid
    first = NoriaVQGANConfig(**vqgan_fields(stage, below(tensors, FIRST), height if height == width else None))
    if condition["condition"] == "tokens":
        condition["condition_length"] = prior.n_positions - height * width
    size = settings.take("downsample_cond_size", default=-1)
    return {
        "prior_config": prior,
        "vqgan_config": first,
        "condition_vqgan_config": second,
        **condition,
        "grid_size": grid,
        "condition_size": None if size < 0 else size,
        "token_order": "row" if order is None else name_of(tuple(order.tolist()), height, width),
        "keep_probability": settings.take("pkeep", default=1.0),
        "num_unmasked": unmasked(settings.parts[0], tensors),
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


def condition_fields(
    settings: Constructor, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[dict[str, Any], NoriaVQGANConfig | None]:
    """What stands before the image's codes; and the encoder of conditions, where there is a second one."""
    if settings.take("unconditional", default=False):
        return {"condition": "none", "sos_token": settings.take("sos_token", default=0)}, None
    stage = settings.part("cond_stage_config")
    kind = CONDITIONS.get(stage.target, "codes")
    if not stage.target and not second:
        stage.where = ""
        stage.missing.append("cond_stage_config")
    if kind == "none":
        return {"condition": kind, "sos_token": settings.take("sos_token", default=0)}, None
    if kind == "class":
        return {"condition": kind, "num_labels": stage.take("n_classes")}, None
    if kind == "coordinates":
        levels, factor = stage.take("n_embed"), stage.take("down_factor")
        return {"condition": kind, "coordinate_levels": levels, "coordinate_downsampling": factor}, None
    if kind == "tokens" or stage.target == AGAIN or not second or (not stage.target and repeats(first, second)):
        return {"condition": kind}, None
    return {"condition": kind}, NoriaVQGANConfig(**vqgan_fields(stage, second))


def repeats(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(same_bytes(first[name], tensor) for name, tensor in second.items())


def ordered_sides(settings: Constructor, codes: int) -> list[int]:
    """Height and width of the map whose `codes` the permuter orders: a square, unless it is told otherwise."""
    permuter = settings.part("permuter_config")
    side = math.isqrt(codes)
    square = side if side**2 == codes else None
    height, width = (permuter.take(name, default=square) for name in ("H", "W"))
    if height is None or height * width != codes:
        permuter.wrong.append(f"H and W are {height} and {width}, but the permuter orders {codes} codes")
        return [side, side]
    return [height, width]


def grid_sides(
    stage: Constructor, tensors: Mapping[str, Tensor], prior: GPT2Config, condition: Mapping[str, Any]
) -> list[int]:
    """Height and width of the map of codes: by the size of images, or as large as the positions allow."""
    factor = 2 ** (layer_count(tensors, f"{FIRST}decoder.up.") - 1)
    size, _ = Constructor(stage.given.get("ddconfig"), stage.from_file.get("ddconfig")).stated("resolution")
    room = prior.n_positions // 2 if condition["condition"] in ("coordinates", "codes") else prior.n_positions
    side = math.isqrt(room)
    side = min(size // factor, side) if size else side
    return [side, side]


def name_of(order: tuple[int, ...], height: int, width: int) -> str | list[int]:
    """The order by its name, or as it is where it has none."""
    names = (name for name in TOKEN_ORDERS if list_places(name, height, width, seed=1) == order)
    return next(names, list(order))
