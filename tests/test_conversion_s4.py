"""Converted layers of state-spaces/s4 give what the original gave, by convolution and step by step."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from noria.conversion.convert import convert
from noria.conversion.export import export
from noria.modeling.s4 import NoriaS4Model

GOLDEN = Path(__file__).parent / "golden"
LOW_RANK = ["s4_dplr", "s4_bidirectional", "s4_fout", "s4_legt_rank2", "s4_softplus"]
DIAGONAL = ["s4d", "s4d_inv_bilinear", "s4d_legs", "s4d_real", "dss"]
STEPPED = ["s4_dplr", "s4_fout", "s4_legt_rank2", "s4_softplus", "s4d", "s4d_inv_bilinear", "s4d_legs"]
FILES = [
    *((case, name) for case in LOW_RANK for name in ("s4.pt", "s4_init.pt")),
    *((case, "s4.pt") for case in DIAGONAL),
    ("s4d_minimal", "s4d.pt"),
]


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """golden(case, file) -> (case.json, recorded tensors, the converted folder)"""
    folder = tmp_path_factory.mktemp("golden")

    def load(case: str, name: str):
        about, target = json.loads((GOLDEN / case / "case.json").read_text()), folder / case / name
        if not target.exists():
            convert("s4", GOLDEN / case / name, target, about["config"])
        return about, load_file(GOLDEN / case / "inputs_outputs.safetensors"), target

    return load


def close(found: torch.Tensor, expected: torch.Tensor, about: dict, tolerance: str = "expected_abs") -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=about["tolerance"][tolerance])


@torch.no_grad()
@pytest.mark.parametrize(("case", "name"), FILES)
def test_outputs_and_kernels_are_the_originals(case, name, golden):
    about, recorded, folder = golden(case, name)
    model = AutoModel.from_pretrained(folder).eval()
    assert isinstance(model, NoriaS4Model)
    for x, y in (("x", "y"), ("x_long", "y_long")):
        if x in recorded:
            found = model(inputs_embeds=recorded[x].transpose(1, 2)).last_hidden_state
            close(found.transpose(1, 2), recorded[y], about)
    kernel = model.layers[0].mixer.kernel
    close(kernel.impulse(kernel.system(), 32).reshape(recorded["kernel"].shape), recorded["kernel"], about)


@torch.no_grad()
@pytest.mark.parametrize(("case", "name"), [(case, name) for case, name in FILES if case in STEPPED])
def test_steps_and_state_are_the_originals(case, name, golden):
    about, recorded, folder = golden(case, name)
    model = AutoModel.from_pretrained(folder).eval()
    x = recorded["x"].transpose(1, 2)
    cache, steps = None, []
    for token in x.split(1, dim=1):
        outputs = model(inputs_embeds=token, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        steps.append(outputs.last_hidden_state)
    close(torch.cat(steps, dim=1).transpose(1, 2), recorded["step_y"], about, "step_abs")
    whole = model(inputs_embeds=x, use_cache=True).past_key_values
    expected = recorded["final_state"]
    for found in (cache, whole):
        state = found.layers[0].state[0]
        # The original of low rank carries both of each conjugate pair.
        if expected.shape[2] == 2 * state.shape[2]:
            state = torch.cat([state, state * torch.tensor([1.0, -1.0])], dim=2)
        close(state, expected, about, "step_abs")


@torch.no_grad()
@pytest.mark.parametrize("case", ["s4_dplr", "s4_bidirectional", "s4d", "dss"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_the_originals_outputs_alone(case, side, golden):
    about, recorded, folder = golden(case, "s4.pt")
    model = AutoModel.from_pretrained(folder).eval()
    pad = (5, 0) if side == "left" else (0, 5)
    x = torch.nn.functional.pad(recorded["x"], pad, value=3.0).transpose(1, 2)
    mask = torch.nn.functional.pad(torch.ones(x.shape[0], 32, dtype=torch.int64), pad)
    found = model(inputs_embeds=x, attention_mask=mask).last_hidden_state.transpose(1, 2)
    close(found[..., 5:] if side == "left" else found[..., :-5], recorded["y"], about)


@pytest.mark.parametrize(("case", "name"), FILES)
def test_export_gives_every_byte_back(case, name, golden, tmp_path):
    _, _, folder = golden(case, name)
    export("s4", folder, tmp_path)
    one = torch.load(GOLDEN / case / name, weights_only=True)
    other = torch.load(tmp_path / name, weights_only=True)
    assert list(one) == list(other)
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype
        assert tensor.numpy().tobytes() == other[key].numpy().tobytes(), key


def version3(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a layer as version 3 named and shaped them."""
    names = {"inv_dt": "log_dt", "A_real": "inv_w_real", "A_imag": "w_imag", "l_kernel": "L"}
    made = {}
    for name, tensor in state.items():
        *path, last = name.removeprefix("layer.").split(".")
        if path == ["kernel"]:
            tensor = {"inv_dt": tensor.squeeze(-1), "A_imag": -tensor}.get(last, tensor)
            made[f"kernel.kernel.{names.get(last, last)}"] = tensor.contiguous()
        else:
            made[".".join([*path, last])] = tensor
    return made


@torch.no_grad()
def test_version_3_is_version_4_by_other_names(golden, tmp_path):
    about, recorded, _ = golden("s4_dplr", "s4.pt")
    state = version3(torch.load(GOLDEN / "s4_dplr" / "s4.pt", weights_only=True))
    save_file(state, tmp_path / "old.safetensors")
    convert("s4", tmp_path / "old.safetensors", tmp_path / "model", about["config"])
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    close(model(inputs_embeds=recorded["x"].transpose(1, 2))[0].transpose(1, 2), recorded["y"], about)
    export("s4", tmp_path / "model", tmp_path / "back")
    back = load_file(tmp_path / "back" / "old.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("case", "config", "message"),
    [
        ("s4d", {}, "dt_transform, real_transform, disc"),
        ("s4_dplr", {"d_model": 9}, "d_model is 9 in the config, but the tensors say 8"),
        ("s4_dplr", {"mode": "diag"}, "there is a kernel.P"),
        ("s4_bidirectional", {"d_model": 8}, "bidirectional=true"),
        ("s4d", {"disc": "euler"}, "disc is 'euler'"),
        ("s4d", {"gate": 2}, "gate=2 cannot be converted"),
        ("s4d", {"d_modell": 8}, "d_model"),
    ],
)
def test_what_cannot_be_converted_is_named(case, config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert("s4", GOLDEN / case / "s4.pt", tmp_path / "model", config)


def test_another_projects_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"no layer\.kernel\.C"):
        convert("s4", tmp_path / "other.safetensors", tmp_path / "model")
