"""taming-transformers' side of the comparison, run by the interpreter that has it.

upstream_taming.py FAMILY PACKAGE write|read FOLDER, as upstream.py. What the package imports for training alone is
replaced by empty modules: Lightning, torchvision, the program `main` and downloads.
"""

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from cases import CASES
from safetensors.torch import save_file

SIZE, LABELS, CODES, SIDE = 16, 5, 24, 8
AUTOENCODER = {
    "double_z": False,
    "z_channels": 8,
    "resolution": SIZE,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
}
LENGTHS = {"class": 1, "none": 1, "coordinates": SIDE**2, "codes": SIDE**2}


def instantiate(config: dict[str, Any]) -> Any:
    module, _, name = config["target"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**config.get("params", {}))


def install_stubs() -> None:
    stubs = {
        "pytorch_lightning": {"LightningModule": torch.nn.Module},
        "torchvision": {"models": None},
        "transformers": {"top_k_top_p_filtering": None},
        "taming.main": {"instantiate_from_config": instantiate},
        "taming.util": {"get_ckpt_path": None},
    }
    for name, content in stubs.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)


def first_stage(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """A VQGAN of the class `kind`; `options` of its encoder and decoder."""
    params = {
        "embed_dim": 8,
        "n_embed": CODES,
        "ddconfig": AUTOENCODER | options,
        "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
    }
    if kind == "VQSegmentationModel":
        params |= {"n_labels": LABELS, "image_key": "segmentation", "sane_index_shape": True}
    if kind == "GumbelVQ":
        schedule = {"warm_up_steps": 0, "max_decay_steps": 9, "lr_start": 0.9, "lr_max": 0.9, "lr_min": 1e-6}
        target = "taming.lr_scheduler.LambdaWarmUpCosineScheduler"
        params["temperature_scheduler_config"] = {"target": target, "params": schedule}
    return {"target": f"taming.models.vqgan.{kind}", "params": params}


def second_stage(condition: str, order: str, unmasked: bool) -> dict[str, Any]:
    length, labels = LENGTHS[condition], {"in_channels": LABELS, "out_ch": LABELS}
    stages = {
        "class": {"target": "taming.modules.util.Labelator", "params": {"n_classes": 9}},
        "coordinates": {
            "target": "taming.modules.misc.coord.CoordStage",
            "params": {"n_embed": CODES, "down_factor": 2},
        },
        "codes": first_stage("VQSegmentationModel", labels),
        "none": "__is_unconditional__",
    }
    gpt = {"vocab_size": CODES + 1, "block_size": length + SIDE**2, "n_layer": 2, "n_head": 2, "n_embd": 32}
    params = {
        "first_stage_config": first_stage("VQModel", {}),
        "cond_stage_config": stages[condition],
        "transformer_config": {
            "target": "taming.modules.transformer.mingpt.GPT",
            "params": gpt | ({"n_unmasked": length} if unmasked else {}),
        },
        "permuter_config": {
            "target": f"taming.modules.transformer.permuter.{order}",
            "params": {} if order == "Identity" else {"H": SIDE, "W": SIDE},
        },
    }
    return {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params}


def configuration(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    return second_stage(**options) if kind == "Net2NetTransformer" else first_stage(kind, options)


@torch.no_grad()
def draw(model: torch.nn.Module) -> None:
    """Makes everything count that begins as zero, as one or nearly so, and codes lie apart."""
    for name, parameter in model.named_parameters():
        if "quantize.embed" in name:
            torch.nn.init.normal_(parameter)
        elif name.startswith("transformer."):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        elif parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)


@torch.no_grad()
def save_outputs(model: torch.nn.Module, config: dict[str, Any], path: Path) -> None:
    torch.manual_seed(0)
    if "transformer_config" in config["params"]:
        save_file(prior_outputs(model.eval(), config["params"]["cond_stage_config"]), path)
        return
    channels = config["params"]["ddconfig"]["in_channels"]
    pixels = torch.randn(2, channels, SIZE, SIZE)
    latents = model.eval().quant_conv(model.encoder(pixels))
    # The original's Gumbel quantizer draws noise in evaluation, too.
    gumbel = hasattr(model.quantize, "proj")
    codes = model.quantize.proj(latents).argmax(1) if gumbel else model.quantize(latents)[2][2]
    batch, width, height, length = latents.shape
    vectors = model.quantize.get_codebook_entry(codes.reshape(-1), (batch, height, length, width))
    found = {"latents": latents, "codes": codes.view(batch, height, length), "reconstruction": model.decode(vectors)}
    save_file({"pixel_values": pixels} | {name: x.contiguous() for name, x in found.items()}, path)


def prior_outputs(model: torch.nn.Module, stage: Any) -> dict[str, torch.Tensor]:
    pixels = torch.randn(2, 3, SIZE, SIZE)
    maps = torch.nn.functional.one_hot(torch.randint(LABELS, (2, SIZE, SIZE)), LABELS).movedim(-1, 1).float()
    conditions = {
        "Labelator": torch.tensor([3, 8]),
        "CoordStage": torch.rand(2, 1, SIZE, SIZE),
        "VQSegmentationModel": maps,
    }
    condition = None if isinstance(stage, str) else conditions[stage["target"].rpartition(".")[2]]
    logits, _ = model(pixels, pixels if condition is None else condition)
    found = {"pixel_values": pixels, "logits": logits.contiguous()}
    return found if condition is None else found | {"condition": condition.contiguous()}


def main(family: str, package: str, task: str, folder: Path) -> None:
    install_stubs()
    for number, (name, (kind, options)) in enumerate(CASES[family][package].items()):
        place, config = folder / name, configuration(kind, options)
        torch.manual_seed(number)
        model = instantiate(config)
        if task == "write":
            draw(model)
            (place / "source").mkdir(parents=True)
            # JSON is yaml, too.
            (place / "source" / "model.yaml").write_text(json.dumps({"model": config}), "utf-8")
            torch.save({"state_dict": model.state_dict(), "callbacks": {}}, place / "source" / "last.ckpt")
            save_outputs(model, config, place / "written.safetensors")
        else:
            state = torch.load(place / "back" / "last.ckpt", weights_only=True)["state_dict"]
            model.load_state_dict(state, strict=True)
            save_outputs(model, config, place / "read.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]))
