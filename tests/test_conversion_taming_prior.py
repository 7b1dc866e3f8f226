"""Converted second stages of taming-transformers write the codes that it wrote."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from noria.conversion.convert import convert
from noria.conversion.export import export
from noria.conversion.raw_bytes import same_bytes
from noria.conversion.torch_file import read_torch
from noria.modeling.image.token_order import token_order
from noria.modeling.vqgan_prior import NoriaVQGANPriorForImageGeneration

GOLDEN = Path(__file__).parent / "golden"
WHOLE = ["net2net_class", "net2net_coord", "net2net_seg", "net2net_uncond"]
CASES = [*WHOLE, "net2net_sliding"]
CONDITIONS = {"class": "class", "coord": "coordinates", "seg": "codes", "uncond": "none", "sliding": "coordinates"}


def load_model(folder: Path) -> NoriaVQGANPriorForImageGeneration:
    return AutoModel.from_pretrained(folder).eval()


def condition_of(model: NoriaVQGANPriorForImageGeneration, recorded: dict[str, torch.Tensor]) -> torch.Tensor | None:
    return None if model.config.condition == "none" else recorded["cond"]


def close(found: torch.Tensor, expected: torch.Tensor, about: dict) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=about["tolerance"]["expected_abs"])


@torch.no_grad()
@pytest.mark.parametrize("case", WHOLE)
def test_logits_and_loss_are_the_originals(case, taming):
    about, recorded, folder = taming(case)
    model = load_model(folder)
    assert isinstance(model, NoriaVQGANPriorForImageGeneration)
    assert model.config.condition == CONDITIONS[case.removeprefix("net2net_")]
    codes = model.vqgan.encode(recorded["pixel_values"]).codes
    assert torch.equal(codes.flatten(1), recorded["z_indices"])
    output = model(pixel_values=recorded["pixel_values"], condition=condition_of(model, recorded))
    close(output.logits, recorded["logits"], about)
    close(output.loss, recorded["loss"], about)


@torch.no_grad()
@pytest.mark.parametrize("case", WHOLE)
def test_greedy_codes_and_their_image_are_the_originals(case, taming):
    about, recorded, folder = taming(case)
    model = load_model(folder)
    condition, count = condition_of(model, recorded), len(recorded["greedy"])
    codes = model.generate_codes(condition=condition, batch_size=count, do_sample=False)
    assert torch.equal(codes.flatten(1), recorded["greedy"])
    close(model.vqgan.decode_codes(codes), recorded["greedy_image"], about)
    half = recorded["z_indices"].shape[1] // 2
    codes = model.generate_codes(
        condition=condition, batch_size=count, codes=recorded["z_indices"][:, :half], do_sample=False
    )
    # The original may write an id of its larger vocabulary that is no code, from where on the two differ.
    same = (recorded["greedy_half"] < model.config.vocab_size).cumprod(1).bool()
    assert same[:, : half + 1].all()
    assert torch.equal(codes.flatten(1)[same], recorded["greedy_half"][same])


@torch.no_grad()
def test_the_sliding_window_is_the_originals(taming):
    _, recorded, folder = taming("net2net_sliding")
    model = load_model(folder)
    assert model.config.grid_size == [16, 16]
    assert torch.equal(model.vqgan.encode(recorded["pixel_values"]).codes, recorded["z_indices"])
    codes = model.generate_codes(condition=recorded["cond"], size=(20, 21), do_sample=False)
    assert torch.equal(codes, recorded["sampled"])
    torch.testing.assert_close(model.vqgan.decode_codes(codes), recorded["sampled_image"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_export_gives_every_tensor_back(case, taming, tmp_path):
    _, _, folder = taming(case)
    export("taming", folder, tmp_path / "back")
    one, other = (read_torch(place / "last.ckpt").content for place in (GOLDEN / case, tmp_path / "back"))
    assert list(one["state_dict"]) == list(other["state_dict"])
    assert all(same_bytes(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    assert sorted(p.name for p in GOLDEN.joinpath(case).glob("*.yaml")) == sorted(
        p.name for p in (tmp_path / "back").glob("*.yaml")
    )


@torch.no_grad()
def test_what_was_trained_further_is_exported(taming, tmp_path):
    _, _, folder = taming("net2net_class")
    shutil.copytree(folder, tmp_path / "model")
    model = load_model(folder)
    attention = model.prior.transformer.h[1].attn.c_attn
    attention.weight[:, 32:64] += 1
    model.save_pretrained(tmp_path / "model")
    export("taming", tmp_path / "model", tmp_path / "back")
    one, other = (read_torch(place / "last.ckpt").content for place in (GOLDEN / "net2net_class", tmp_path / "back"))
    changed = [name for name, x in one["state_dict"].items() if not same_bytes(x, other["state_dict"][name])]
    assert changed == ["transformer.blocks.1.attn.key.weight"]
    assert torch.equal(other["state_dict"][changed[0]], one["state_dict"][changed[0]] + 1)


@pytest.mark.parametrize("case", CASES)
def test_what_tensors_do_not_tell_is_asked_for(case, taming, tmp_path):
    about, _, folder = taming(case)
    shutil.copy(GOLDEN / case / "last.ckpt", tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"does not say .*transformer_config\.n_head") as caught:
        convert("taming", tmp_path / "last.ckpt", tmp_path / "model")
    assert ("cond_stage_config" in str(caught.value)) == (case != "net2net_seg")
    convert("taming", tmp_path / "last.ckpt", tmp_path / "model", about["config"])
    assert (tmp_path / "model" / "config.json").read_text() == (folder / "config.json").read_text()


@torch.no_grad()
def test_heads_alone_are_enough_where_the_condition_has_tensors(taming, tmp_path):
    about, recorded, _ = taming("net2net_seg")
    shutil.copy(GOLDEN / "net2net_seg" / "last.ckpt", tmp_path / "last.ckpt")
    convert("taming", tmp_path / "last.ckpt", tmp_path / "model", {"n_head": 2})
    model = load_model(tmp_path / "model")
    assert model.config.num_unmasked == 16
    assert model.config.condition_vqgan_config.task == "segmentation"
    close(model(pixel_values=recorded["pixel_values"], condition=recorded["cond"]).logits, recorded["logits"], about)


def changed_checkpoint(place: Path, case: str, change) -> Path:
    """The golden checkpoint with `change` made to its state dict, its yaml beside it."""
    content = torch.load(GOLDEN / case / "last.ckpt", weights_only=True)
    change(content["state_dict"])
    place.mkdir()
    torch.save(content, place / "last.ckpt")
    for path in (GOLDEN / case).glob("*.yaml"):
        shutil.copy(path, place)
    return place


@pytest.mark.parametrize("order", ["spiral_in", "alternate", "random", "of its own"])
def test_the_order_of_codes_is_read_from_the_permuter(order, tmp_path):
    places = torch.arange(36).roll(1) if order == "of its own" else token_order(order, 6, 6)
    buffers = {"permuter.forward_shuffle_idx": places, "permuter.backward_shuffle_idx": places.argsort()}
    source = changed_checkpoint(tmp_path / "source", "net2net_uncond", lambda state: state.update(buffers))
    convert("taming", source, tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert model.config.token_order == (places.tolist() if order == "of its own" else order)
    assert torch.equal(model.find_order((6, 6)), places)
    export("taming", tmp_path / "model", tmp_path / "back")
    back = torch.load(tmp_path / "back" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(same_bytes(back[name], tensor) for name, tensor in buffers.items())


@pytest.mark.parametrize("told", [True, False], ids=["told", "seen"])
def test_the_first_stage_may_encode_conditions_too(told, tmp_path):
    def alias(state: dict[str, torch.Tensor]) -> None:
        first = [name for name in state if name.startswith("first_stage_model.")]
        state.update({f"cond_stage_model.{name.partition('.')[2]}": state[name] for name in first})
        state["transformer.pos_emb"] = torch.randn(1, 72, 32)
        for block in (0, 1):
            state[f"transformer.blocks.{block}.attn.mask"] = torch.ones(72, 72).tril()[None, None]

    source = changed_checkpoint(tmp_path / "source", "net2net_class", alias)
    config = {"transformer_config": {"params": {"block_size": 72}}, "cond_stage_config": "__is_first_stage__"}
    if not told:
        next(source.glob("*.yaml")).unlink()
        config = {"n_head": 4}
    convert("taming", source, tmp_path / "model", config)
    model = load_model(tmp_path / "model")
    assert (model.config.condition, model.condition_vqgan) == ("codes", None)
    pixels = torch.randn(1, 3, 12, 12)
    assert model(pixel_values=pixels, condition=pixels).logits.shape == (1, 36, 64)
    export("taming", tmp_path / "model", tmp_path / "back")
    one, other = (read_torch(place / "last.ckpt").content["state_dict"] for place in (source, tmp_path / "back"))
    assert list(one) == list(other)
    assert all(same_bytes(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_head": 5}, "n_head is 5, which does not divide the width 32"),
        ({"n_embd": 48}, r"transformer_config\.n_embd is 48 in the config, but the tensors say 32"),
        ({"first_stage_config": {"params": {"n_embed": 7}}}, r"first_stage_config\.n_embed is 7"),
        ({"transformer_config": {"params": {"n_heads": 4}}}, r"transformer_config\.n_heads is no argument there"),
        ({"transformer_config": {"target": "taming.CodeGPT"}}, "only GPT can be converted"),
        ({"weights": "ema"}, "only a first stage has running means"),
        ({"ch": 32}, "'ch'"),
    ],
)
def test_wrong_arguments_are_named(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert("taming", GOLDEN / "net2net_class", tmp_path / "model", config)
    assert not (tmp_path / "model").exists()
