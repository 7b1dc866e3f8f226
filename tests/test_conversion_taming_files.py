"""How taming's checkpoints lie about: run folders, yaml, old pickles, and files that mean harm or something else."""

import argparse
import json
import os
import shutil
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from noria.conversion.command import register
from noria.conversion.convert import convert
from noria.conversion.export import export

GOLDEN = Path(__file__).parent / "golden"
CASE = GOLDEN / "vqgan_pickled_callbacks"


class Calls:
    """Unpickles by calling `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def place(folder: Path, weights: str, configuration: str, case: Path = CASE) -> Path:
    """The golden checkpoint and its yaml at other places below `folder`."""
    for name, target in (("last.ckpt", weights), ("model.yaml", configuration)):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(case / name, folder / target)
    return folder


@pytest.mark.parametrize(
    ("weights", "configuration", "source"),
    [
        ("checkpoints/last.ckpt", "configs/2020-11-09T13-31-51-project.yaml", ""),
        ("checkpoints/last.ckpt", "configs/2020-11-09T13-31-51-project.yaml", "checkpoints/last.ckpt"),
        ("ckpts/last.ckpt", "configs/model.yaml", ""),
        ("checkpoints/epoch=7.ckpt", "configs/config.yaml", ""),
        ("model.ckpt", "config.yaml", ""),
        ("f16.ckpt", "f16.yaml", "f16.ckpt"),
    ],
)
def test_the_yaml_is_found_where_runs_keep_it(weights, configuration, source, tmp_path):
    root = place(tmp_path / "run", weights, configuration, GOLDEN / "vqgan")
    convert("taming", root / source, tmp_path / "model")
    assert AutoConfig.from_pretrained(tmp_path / "model").image_size == 16
    assert (tmp_path / "model" / "upstream" / Path(configuration).name).is_file()
    export("taming", tmp_path / "model", tmp_path / "back")
    back = sorted(path.name for path in (tmp_path / "back").iterdir())
    assert back == sorted([Path(weights).name, Path(configuration).name])


def test_an_archive_is_read_as_latent_diffusion_publishes_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "vq-f2.zip", "w") as archive:
        archive.write(CASE / "last.ckpt", "model.ckpt")
        archive.write(CASE / "model.yaml", "config.yaml")
    convert("taming", tmp_path / "vq-f2.zip", tmp_path / "model")
    assert AutoConfig.from_pretrained(tmp_path / "model").image_size == 8
    assert (tmp_path / "model" / "upstream" / "config.yaml").is_file()


def test_later_yaml_files_of_a_run_come_over_earlier_ones(tmp_path):
    root = place(tmp_path / "run", "checkpoints/last.ckpt", "configs/1-project.yaml", GOLDEN / "vqgan")
    changed = "model:\n  params:\n    lossconfig:\n      params:\n        codebook_weight: 1e-2\n"
    (root / "configs" / "2-project.yaml").write_text(changed)
    convert("taming", root, tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert (config.codebook_weight, config.image_size) == (0.01, 16)


def test_what_lightning_stored_stands_in_for_the_yaml(tmp_path):
    shutil.copy(CASE / "last.ckpt", tmp_path)
    convert("taming", tmp_path, tmp_path / "model")
    assert AutoConfig.from_pretrained(tmp_path / "model").image_size == 8
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["settings"]["ddconfig.resolution"] == {"value": 8, "from": "file"}
    assert record["settings"]["legacy"] == {"value": True, "from": "default"}


def test_callbacks_and_omegaconf_are_neither_imported_nor_needed(tmp_path):
    convert("taming", CASE, tmp_path / "model")
    assert not {"pytorch_lightning", "omegaconf"} & {name.partition(".")[0] for name in sys.modules}
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["refused"] == [
        "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "typing.Any",
    ]
    assert record["dropped"] == {"optimizer_states": "optimizer state"}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_nothing_in_a_checkpoint_is_run(zipped, tmp_path, monkeypatch):
    trap = tmp_path / "sprung"
    content = torch.load(GOLDEN / "vqgan_seg" / "last.ckpt", weights_only=True)
    stranger = types.ModuleType("lightning_of_old")
    stranger.Callback = type("Callback", (), {"__module__": "lightning_of_old"})
    monkeypatch.setitem(sys.modules, "lightning_of_old", stranger)
    evil = Calls(os.system, f"touch {trap}")
    content["callbacks"] = {stranger.Callback: {"best": evil}, "other": Calls(eval, f"open({str(trap)!r}, 'w')")}
    content["hyper_parameters"] = {"ddconfig": evil, "n_embed": Calls(Path.touch, trap)}
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "lightning_of_old")
    convert("taming", tmp_path / "last.ckpt", tmp_path / "model")
    export("taming", tmp_path / "model", tmp_path / "back")
    assert not trap.exists()
    refused = json.loads((tmp_path / "model" / "conversion.json").read_text())["refused"]
    assert {"lightning_of_old.Callback", f"{os.system.__module__}.system"} <= set(refused)
    assert "callbacks" in torch.load(tmp_path / "back" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!python/object/apply:os.system ['touch sprung']", "is no plain yaml"),
        ("model: [1, 2", "is no plain yaml"),
    ],
)
def test_a_yaml_that_is_no_plain_one_is_refused(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(CASE / "last.ckpt", tmp_path)
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        convert("taming", tmp_path, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "model.yaml"]


def test_a_yaml_of_something_else_is_passed_over(tmp_path):
    shutil.copy(CASE / "last.ckpt", tmp_path)
    (tmp_path / "config.yaml").write_text("name: another tool\n")
    convert("taming", tmp_path, tmp_path / "model")
    assert AutoConfig.from_pretrained(tmp_path / "model").image_size == 8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_embed": 65}, "n_embed is 65 in the config, but the tensors say 64"),
        (
            {"ddconfig": {"ch_mult": [1, 2]}},
            r"ddconfig\.ch_mult is \[1, 2\] in the config, but the tensors say \[1, 1\]",
        ),
        ({"resolution": 24}, "do not put attention where the tensors have it"),
        ({"attn_resolutions": [16]}, "do not put attention where the tensors have it"),
        ({"ddconfig": {"chmult": [1]}}, r"ddconfig\.chmult is no argument there: it takes attn_resolutions"),
        ({"give_pre_end": True}, "give_pre_end=True cannot be converted"),
        ({"attn_type": "linear"}, "attn_type is 'linear' in the config, but the tensors say 'vanilla'"),
        ({"weights": "ema"}, "no tensor's name begins with model_ema"),
        ({"weights": "best"}, "weights is 'best', not one of 'model', 'ema'"),
        ({"loss": "some"}, "loss is 'some', not one of 'keep', 'drop'"),
        ({"n_head": 4}, "'n_head', which this stage does not have"),
        ({"embeddim": 4}, "did you mean embed_dim"),
    ],
)
def test_wrong_arguments_are_named(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert("taming", GOLDEN / "vqgan", tmp_path / "model", config)
    assert not (tmp_path / "model").exists()


def without(*begins: str):
    return lambda state: [state.pop(name) for name in list(state) if name.startswith(begins)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("quantize."), "an autoencoder without codes"),
        (without("quantize.", "quant_conv", "post_"), "it is no VQGAN of taming-transformers"),
        (without("decoder.up.0.block.0.norm1.bias"), r"lacks 1 tensors: decoder\.up\.0\.block\.0\.norm1\.bias"),
        (without("decoder."), r"lacks decoder\.up\.0\.block\.0\.conv1\.weight"),
        (lambda state: state.update(more=torch.ones(1)), "no rule for 1 tensors of the checkpoint: more"),
        (lambda state: state.update({"encoder.conv_out.bias": torch.ones(3)}), "wrong shape"),
    ],
)
def test_what_is_no_whole_vqgan_is_named(change, message, tmp_path):
    content = torch.load(GOLDEN / "vqgan" / "last.ckpt", weights_only=True)
    change(content["state_dict"])
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=message):
        convert("taming", tmp_path / "last.ckpt", tmp_path / "model")


def test_a_model_of_latent_diffusion_is_told_from_a_second_stage(tmp_path):
    content = torch.load(GOLDEN / "vqgan" / "last.ckpt", weights_only=True)
    state = {f"first_stage_model.{name}": x for name, x in content["state_dict"].items()}
    torch.save({"state_dict": state | {"model.diffusion_model.out.weight": torch.ones(1)}}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="latent diffusion is not converted as a whole"):
        convert("taming", tmp_path / "model.ckpt", tmp_path / "model")


def test_the_command_takes_arguments_as_json(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    options = ["--config", "n_head=2", "--config", 'first_stage_config={"params": {"embed_dim": 16}}']
    shutil.copy(GOLDEN / "net2net_seg" / "last.ckpt", tmp_path)
    arguments = parser.parse_args(["convert", "taming", str(tmp_path), str(tmp_path / "model"), *options])
    assert arguments.handler(arguments) == 0
    assert AutoConfig.from_pretrained(tmp_path / "model").prior_config.n_head == 2
    arguments = parser.parse_args(["convert", "taming", str(tmp_path), str(tmp_path / "other")])
    assert arguments.handler(arguments) == 2
    assert "n_head" in capsys.readouterr().err
