"""The configuration of a VQGAN of taming-transformers or latent diffusion, from its arguments and its tensors."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .format import layer_count
from .taming_settings import Constructor

AUTOENCODER = (
    "ch",
    "out_ch",
    "ch_mult",
    "num_res_blocks",
    "attn_resolutions",
    "dropout",
    "resamp_with_conv",
    "in_channels",
    "resolution",
    "z_channels",
    "double_z",
    "give_pre_end",
    "tanh_out",
    "use_linear_attn",
    "attn_type",
)
QUANTIZER = ("beta", "legacy", "unknown_index", "straight_through", "remap", "kl_weight", "temp_init")
# Training and the upstream's own book-keeping, without influence on a converted model.
INDIFFERENT = (
    "target",
    "base_learning_rate",
    "ckpt_path",
    "ignore_keys",
    "image_key",
    "colorize_nlabels",
    "n_labels",
    "monitor",
    "sane_index_shape",
    "temperature_scheduler_config",
    "batch_resize_range",
    "scheduler_config",
    "lr_g_factor",
    "use_ema",
)
ARGUMENTS = ("embed_dim", "n_embed", "ddconfig", "lossconfig", *QUANTIZER, *INDIFFERENT)
LABEL_LOSSES = ("BCELoss", "BCELossWithQuant")
ATTENTIONS = {"vanilla": "full", "linear": "linear", "none": "none"}
GROUPS = 32
USUAL_SIZE, LARGEST_SIZE = 256, 2048
MIDDLE = "decoder.mid.attn_1."


def vqgan_fields(settings: Constructor, tensors: Mapping[str, Tensor], grid: int | None = None) -> dict[str, Any]:
    """The fields of NoriaVQGANConfig. `grid` is the side of the map of codes, where a second stage tells it."""
    refuse_foreign(tensors)
    settings.check_names(ARGUMENTS)
    options = settings.part("ddconfig")
    options.check_names(AUTOENCODER)
    channels = need(tensors, "encoder.conv_in.weight").shape
    widths = level_widths(tensors)
    latents = need(tensors, "decoder.conv_in.weight").shape[1]
    options.refuse("give_pre_end", False, "the decoder's last norm and convolution are always applied here")
    multipliers = [width // channels[0] for width in widths]
    if any(width % channels[0] for width in widths):
        options.wrong.append(f"the widths {widths} are no multiples of ch={channels[0]}")
    return {
        **quantizer_fields(settings, tensors),
        "hidden_size": options.take("ch", channels[0]),
        "num_channels": options.take("in_channels", channels[1]),
        "output_channels": options.take("out_ch", need(tensors, "decoder.conv_out.weight").shape[0]),
        "channel_multipliers": options.take("ch_mult", multipliers),
        "num_hidden_layers": options.take("num_res_blocks", layer_count(tensors, "decoder.up.0.block.") - 1),
        "latent_channels": options.take("z_channels", latents),
        "double_latent": options.take("double_z", need(tensors, "encoder.conv_out.weight").shape[0] == 2 * latents),
        "dropout": options.take("dropout", default=0.0),
        "tanh_output": options.take("tanh_out", default=False),
        "resample_with_conv": options.take("resamp_with_conv", resampling(tensors, len(widths)), default=True),
        "norm_num_groups": GROUPS,
        **attention_fields(options, tensors, len(widths), grid),
        **loss_fields(settings, tensors),
    }


def refuse_foreign(tensors: Mapping[str, Tensor]) -> None:
    if not any(name.startswith("quantize.") for name in tensors):
        names = ", ".join(list(tensors)[:4])
        hint = ": an autoencoder without codes" if "quant_conv.weight" in tensors else f" among {names}, ..."
        raise ValueError(f"it is no VQGAN of taming-transformers: no quantize.embedding.weight{hint}")


def need(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"the checkpoint lacks {name}")
    return tensors[name]


def level_widths(tensors: Mapping[str, Tensor]) -> list[int]:
    """Channels at each resolution, the full one first: the decoder always has a block there."""
    levels = range(max(layer_count(tensors, "decoder.up."), 1))
    return [need(tensors, f"decoder.up.{level}.block.0.conv1.weight").shape[0] for level in levels]


def resampling(tensors: Mapping[str, Tensor], levels: int) -> bool | None:
    """Whether steps between resolutions have weights; None where there is no step."""
    return None if levels == 1 else "encoder.down.0.downsample.conv.weight" in tensors


def quantizer_fields(settings: Constructor, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    gumbel = "quantize.proj.weight" in tensors
    codebook = need(tensors, "quantize.embed.weight" if gumbel else "quantize.embedding.weight")
    fields = {
        "vocab_size": settings.take("n_embed", codebook.shape[0]),
        "code_size": settings.take("embed_dim", codebook.shape[1]),
        "quantizer": "ema" if "quantize.embedding.embed_avg" in tensors else "vq",
    }
    if gumbel:
        inputs = tensors["quantize.proj.weight"].shape[1]
        if inputs != codebook.shape[1]:
            settings.wrong.append(
                f"quantize.proj takes {inputs} channels and codes have {codebook.shape[1]}: z_channels and embed_dim "
                "differ, and the original cannot run then either"
            )
        fields["quantizer"] = "gumbel"
        fields["kl_weight"] = settings.take("kl_weight", default=1e-8)
        fields["straight_through"] = settings.take("straight_through", default=True)
        fields["gumbel_temperature"] = settings.take("temp_init", default=1.0)
    else:
        fields["commitment_cost"] = settings.take("beta", default=0.25)
        fields["legacy_commitment"] = settings.take("legacy", default=True)
    if "quantize.used" in tensors:
        fields["used_codes"] = tensors["quantize.used"].tolist()
        fields["unknown_code"] = settings.take("unknown_index", default="random")
    return fields


def attention_fields(
    options: Constructor, tensors: Mapping[str, Tensor], levels: int, grid: int | None
) -> dict[str, Any]:
    """Where and how maps attend; the size of images decides at which level a resolution lies."""
    found = (
        "vanilla" if f"{MIDDLE}q.weight" in tensors else "linear" if f"{MIDDLE}to_qkv.weight" in tensors else "none"
    )
    linear = options.take("use_linear_attn", None if found == "linear" else False, False)
    kind = found if linear else options.take("attn_type", found)
    # A level without blocks cannot show whether it would attend.
    shown = {
        side: [any(name.startswith(f"{side}.{level}.attn.") for name in tensors) for level in range(levels)]
        for side in ("encoder.down", "decoder.up")
        if kind != "none" and f"{side}.0.block.0.conv1.weight" in tensors
    }
    resolutions, _ = options.stated("attn_resolutions")
    size, _ = options.stated("resolution")
    sizes = [size] if size else candidates(grid, levels)
    fitting = (made for made in (attending(size, shown, levels, resolutions) for size in sizes) if made)
    made = next(fitting, None)
    if made is None:
        where = {side: [level for level, attends in enumerate(all_) if attends] for side, all_ in shown.items()}
        options.wrong.append(
            f"resolution {size or 'of any size'} and attn_resolutions {resolutions or 'of any kind'} do not put "
            f"attention where the tensors have it, at the levels {where}"
        )
        made = size or USUAL_SIZE, list(resolutions or ())
    return {
        "image_size": options.take("resolution", made[0]),
        "attention_resolutions": options.take("attn_resolutions", None if resolutions is not None else made[1], []),
        "attention": ATTENTIONS.get(kind, "full"),
    }


def candidates(grid: int | None, levels: int) -> Iterable[int]:
    """Sizes of images to try where none is stated, the likeliest first."""
    if grid is not None:
        yield grid * 2 ** (levels - 1)
    yield USUAL_SIZE
    yield from range(1, LARGEST_SIZE)


def attending(
    size: int, shown: Mapping[str, list[bool]], levels: int, stated: list[int] | None
) -> tuple[int, list[int]] | None:
    """`size` and the resolutions that attend, if levels attend as `shown` then; else None.

    An odd map loses a row on its way down, and so the decoder's maps may be smaller than the encoder's.
    """
    lowest = size // 2 ** (levels - 1)
    maps = {
        "encoder.down": [size // 2**level for level in range(levels)],
        "decoder.up": [lowest * 2 ** (levels - 1 - level) for level in range(levels)],
    }
    chosen = {maps[side][level] for side, all_ in shown.items() for level, attends in enumerate(all_) if attends}
    resolutions = sorted(chosen) if stated is None else list(stated)
    agree = all([x in resolutions for x in maps[side]] == all_ for side, all_ in shown.items())
    return (size, resolutions) if lowest and agree else None


def loss_fields(settings: Constructor, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the model is trained for; without a word of it, a buffer of colours and no discriminator tell labels."""
    loss = settings.part("lossconfig")
    untold = not settings.target and not loss.target
    coloured = "colorize" in tensors and not any(name.startswith("loss.discriminator.") for name in tensors)
    labels = settings.target == "VQSegmentationModel" or loss.target in LABEL_LOSSES or (untold and coloured)
    return {
        "task": "segmentation" if labels else "image",
        "codebook_weight": loss.take("codebook_weight", default=1.0),
    }
