"""VQGAN's encoder, decoder and codebook search against taming-transformers' own; tiles; second stages at sampling.

Network     the f16 model of 72 M parameters, random weights, one image of 256 x 256: taming's Encoder and Decoder,
            ours with the same weights, ours in channels_last, and that in bfloat16. `error` is the largest difference
            from ours in float64, relative to its largest value; `rms` the root of the mean square, relative to theirs;
            `codes` the share of codes that are those of float64
Search      vectors of 256 numbers: taming's |z|^2 + |e|^2 - 2 z e, then argmin, and our search in blocks; `peak` is
            what it adds to resident memory, in a fresh process
Tiles       the same model on 1,024 x 1,024: whole, and in tiles of 256 that share 64; differences are from the whole.
            Norms of random weights hang on their tile's contrast far more than trained ones do
Sampling    NoriaVQGANPriorForImageGeneration over priors of one size: codes a second in generate_codes(), sampled, and
            the cache's bytes behind so many codes

The first part compares with the code of CompVis/taming-transformers: --taming, or NORIA_TAMING, names the folder that
has it. Without it, ratios are to our own model.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from harness import compare, error, in_fresh_process, peak_growth, progress, publish, ratio, start, table
from shapes import SMALL, Shape, gpt2, linear_transformer, retnet
from torch import Tensor, nn
from transformers import PreTrainedConfig

from noria import NoriaVQGANConfig, NoriaVQGANModel, NoriaVQGANPriorConfig, NoriaVQGANPriorForImageGeneration
from noria.modeling.ops.nearest_code import nearest_codes

TAMING_MODEL = "taming.modules.diffusionmodules.model"
PRIOR = Shape(layers=8, width=512, vocabulary=1024)
PRIORS = {"GPT-2": gpt2, "LinearTransformer": linear_transformer, "RetNet": retnet}
SEARCHES = ((256, 1024), (256, 16384), (4096, 16384))
Networks = dict[str, tuple[nn.Module, torch.dtype, torch.memory_format]]


def f16(quick: bool) -> NoriaVQGANModel:
    """The f16 model, or a narrow one; its codebook is spread so that random latents reach all of it."""
    torch.manual_seed(0)
    model = NoriaVQGANModel(NoriaVQGANConfig(hidden_size=32 if quick else 128)).eval()
    latents = model.encode(picture(256)).latents
    nn.init.normal_(model.quantizer.embedding.weight, latents.mean().item(), latents.std().item())
    return model


def picture(side: int) -> Tensor:
    """(1 3 side side) in [-1, 1]: blots of all sizes, as images have them."""
    torch.manual_seed(1)
    sizes = [size for size in (4, 16, 64, 256) if size <= side]
    layers = [torch.randn(1, 3, size, size) / len(sizes) for size in sizes]
    return sum(nn.functional.interpolate(x, size=(side, side), mode="bilinear") for x in layers).tanh()


class Theirs(nn.Module):
    """taming's encoder and decoder with a model's weights."""

    def __init__(self, model: NoriaVQGANModel) -> None:
        super().__init__()
        config, source = model.config, import_module(TAMING_MODEL)
        options = {
            "ch": config.hidden_size,
            "out_ch": config.output_channels,
            "ch_mult": tuple(config.channel_multipliers),
            "num_res_blocks": config.num_hidden_layers,
            "attn_resolutions": list(config.attention_resolutions),
            "in_channels": config.num_channels,
            "resolution": config.image_size,
            "z_channels": config.latent_channels,
            "double_z": False,
        }
        self.encoder, self.decoder = source.Encoder(**options), source.Decoder(**options)
        for name in ("encoder", "decoder"):
            getattr(self, name).load_state_dict(getattr(model, name).state_dict())


def taming_is_there(folder: str | None) -> bool:
    if folder:
        sys.path.insert(0, str(Path(folder)))
    try:
        import_module(TAMING_MODEL)
    except ImportError as reason:
        progress(f"taming's own code is left out ({reason}): --taming or NORIA_TAMING names its folder")
        return False
    return True


def networks(model: NoriaVQGANModel, with_taming: bool) -> Networks:
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    half = copy.deepcopy(last).to(torch.bfloat16)
    found: Networks = {"taming": (Theirs(model), torch.float32, torch.contiguous_format)} if with_taming else {}
    return found | {
        "ours": (model, torch.float32, torch.contiguous_format),
        "ours, channels_last": (last, torch.float32, torch.channels_last),
        "ours, channels_last, bfloat16": (half, torch.bfloat16, torch.channels_last),
    }


@torch.inference_mode()
def network(quick: bool, with_taming: bool, seconds: float) -> str:
    model, pixels = f16(quick), picture(256)
    exact = copy.deepcopy(model).double()
    encoded = exact.encode(pixels.double())
    latents = exact.post_quantizer(encoded.quantized)
    truth = {"encoder": exact.encoder(pixels.double()), "decoder": exact.decoder(latents)}
    given = {"encoder": pixels, "decoder": latents.float()}
    rows = []
    for part, x in given.items():
        runs, found = {}, {}
        for name, (one, dtype, layout) in networks(model, with_taming).items():
            run = partial(getattr(one, part), x.to(dtype, memory_format=layout))
            runs[name], found[name] = run, run().double()
        times = compare(runs, seconds)
        for name, time in times.items():
            wrong = found[name] - truth[part]
            spread = (wrong.square().mean() / truth[part].square().mean()).sqrt().item()
            codes = same_codes(exact, found[name], encoded.codes) if part == "encoder" else ""
            against = ratio(time, next(iter(times.values())))
            rows.append([part, name, str(time), f"**{against}**", f"{error(found[name], truth[part]):.1e}"])
            rows[-1] += [f"{spread:.1e}", codes]
            progress(" ".join(rows[-1]))
    return table(["", "", "ms", "x the first", "error", "rms", "codes"], rows)


def same_codes(exact: NoriaVQGANModel, encoded: Tensor, codes: Tensor) -> str:
    return f"{(exact.quantizer(exact.pre_quantizer(encoded)).codes == codes).float().mean().item():.1%}"


def taming_search(z: Tensor, codebook: Tensor) -> Tensor:
    squares = z.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return (squares - 2 * torch.einsum("nd,dv->nv", z, codebook.t())).argmin(1)


FORMULATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"taming": taming_search, "ours": nearest_codes}


def search_inputs(tokens: int, codes: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(tokens)
    return torch.randn(tokens, 256), torch.randn(codes, 256)


def search(arguments, shapes: Sequence[tuple[int, int]], seconds: float) -> str:
    rows = []
    for shape in shapes:
        inputs = search_inputs(*shape)
        found = {name: run(*inputs) for name, run in FORMULATIONS.items()}
        same = (found["ours"] == found["taming"]).float().mean().item()
        times = compare({name: partial(run, *inputs) for name, run in FORMULATIONS.items()}, seconds)
        peaks = [in_fresh_process(arguments, {"search": name, "shape": shape})["peak"] for name in FORMULATIONS]
        rows.append([f"{shape[0]:,} x {shape[1]:,}", *map(str, times.values())])
        rows[-1] += [f"**{ratio(times['ours'], times['taming'])}**", *(f"{peak:.0f}" for peak in peaks)]
        rows[-1] += [f"**{peaks[1] / max(peaks[0], 0.1):.3f}**", f"{same:.2%}"]
        progress(" ".join(rows[-1]))
    header = ["tokens x codes", "taming, ms", "ours, ms", "x taming", "taming, peak MiB", "ours", "x taming", "same"]
    return table(header, rows)


WAYS: dict[str, Callable[[NoriaVQGANModel, Tensor], Any]] = {
    "encode": lambda model, x: model.encode(x).codes,
    "encode_tiled": lambda model, x: model.encode_tiled(x).codes,
    "decode": lambda model, x: model.decode(x),
    "decode_tiled": lambda model, x: model.decode_tiled(x),
}


def tile_inputs(way: str, side: int) -> Tensor:
    return picture(side) if way.startswith("encode") else torch.randn(1, 256, side // 16, side // 16)


def tiles(arguments, side: int, seconds: float) -> str:
    model = f16(arguments.quick).to(memory_format=torch.channels_last)
    rows = []
    with torch.inference_mode():
        latents = model.encode(picture(side)).quantized
        for part in ("encode", "decode"):
            x = picture(side) if part == "encode" else latents
            names = (part, f"{part}_tiled")
            whole, tiled = (WAYS[name](model, x) for name in names)
            if part == "encode":
                near = f"{(whole == tiled).float().mean().item():.1%} of codes are the same"
            else:
                near = f"rms {((whole - tiled).square().mean() / whole.var()).sqrt().item():.2f} of the deviation"
            times = compare({name: partial(WAYS[name], model, x) for name in names}, seconds, least=1, warm=False)
            for name, time in times.items():
                case = {"tiles": name, "side": side, "quick": arguments.quick}
                peak = in_fresh_process(arguments, case)["peak"]
                rows.append([name, str(time), f"**{ratio(time, times[part])}**", f"{peak:.0f}"])
                rows[-1].append(near if name.endswith("tiled") else "")
                progress(" ".join(rows[-1]))
    return table([f"{side:,} x {side:,}", "ms", "x whole", "peak, MiB", "difference"], rows)


def second_stage(config: PreTrainedConfig, vocabulary: int, side: int) -> NoriaVQGANPriorForImageGeneration:
    fields = config.to_dict()
    if "n_positions" in fields:
        fields["n_positions"] = side * side + 1
    whole = NoriaVQGANPriorConfig(prior_config=fields, vocab_size=vocabulary, grid_size=side)
    return NoriaVQGANPriorForImageGeneration(whole).eval()


def sampling(shape: Shape, sides: Sequence[int], seconds: float) -> str:
    rows = []
    for name, build in PRIORS.items():
        config = build(shape).config
        row: list[str] = []
        for side in sides:
            torch.manual_seed(0)
            model = second_stage(config, shape.vocabulary, side)
            run = partial(model.generate_codes, do_sample=True, seed=0)
            run(codes=torch.zeros(1, side - 1, side, dtype=torch.int64))
            time = compare({name: run}, seconds, least=1, warm=False)[name]
            row += [f"{side * side / time.median:.0f}", f"{cache_bytes(model, side * side):,}"]
        rows.append([name, f"{model.prior.num_parameters():,}", *row])
        progress(" ".join(rows[-1]))
    sizes = [f"{side * side:,} codes" for side in sides]
    return table(["prior", "parameters", *(x for size in sizes for x in (f"{size}: a second", "cache, bytes"))], rows)


@torch.no_grad()
def cache_bytes(model: NoriaVQGANPriorForImageGeneration, length: int) -> int:
    """Bytes of all tensors that generate()'s cache holds behind so many tokens."""
    ids = torch.zeros(1, length, dtype=torch.int64)
    cache = model.prior(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    return sum(tensor.nbytes for layer in cache.layers for tensor in tensors_of(vars(layer)))


def tensors_of(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


@torch.inference_mode()
def answer(case: dict[str, Any]) -> dict[str, float]:
    """What one fresh process measures: MiB at the peak beyond the inputs."""
    if "search" in case:
        run, inputs = FORMULATIONS[case["search"]], search_inputs(*case["shape"])
        run(*search_inputs(8, 64))
        return {"peak": peak_growth(lambda: run(*inputs))[1]}
    model = f16(case["quick"]).to(memory_format=torch.channels_last)
    x = tile_inputs(case["tiles"], case["side"])
    return {"peak": peak_growth(lambda: WAYS[case["tiles"]](model, x))[1]}


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--case", type=json.loads, help="one case as JSON; what a fresh process is started with")
    parser.add_argument("--part", choices=("network", "search", "tiles", "sampling"), help="one part only")
    parser.add_argument("--taming", default=os.environ.get("NORIA_TAMING"), help="a checkout of taming-transformers")


def main() -> None:
    arguments = start("images", __doc__, add_options)
    if arguments.case:
        print(json.dumps(answer(arguments.case)))
        return
    quick = arguments.quick
    seconds = 0.5 if quick else 20.0
    parts = {
        "network": lambda: network(quick, taming_is_there(arguments.taming), seconds),
        "search": lambda: search(arguments, SEARCHES[:1] if quick else SEARCHES, seconds / 2),
        "tiles": lambda: tiles(arguments, 384 if quick else 1024, seconds),
        "sampling": lambda: sampling(SMALL if quick else PRIOR, (8,) if quick else (16, 32, 64), seconds),
    }
    wanted = [arguments.part] if arguments.part else list(parts)
    text = "\n\n".join(f"{name.capitalize()}:\n\n{parts[name]()}" for name in wanted)
    publish("images", arguments, text)


if __name__ == "__main__":
    main()
