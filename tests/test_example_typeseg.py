"""The converter of typeseg's tagger, on a package of the same form whose graph is written out in numpy."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

SCRIPT = Path(__file__).parents[1] / "examples" / "convert_typeseg.py"
WIDTH, STATE, RANK, KERNEL, LABELS = 12, 4, 3, 4, ["python", "css", "text"]


def draw_weights(blocks: int = 2) -> dict[str, np.ndarray]:
    """Random weights under the names that the package has."""
    draw = np.random.default_rng(0)
    dense = {0: (WIDTH, 2 * WIDTH), 1: (WIDTH, RANK + 2 * STATE), 2: (RANK, WIDTH), 3: (WIDTH, WIDTH)}
    shapes = {"Embed_0__embedding": (130, WIDTH), "LayerNorm_0__scale": (WIDTH,), "LayerNorm_0__bias": (WIDTH,)}
    shapes |= {"Dense_0__kernel": (WIDTH, len(LABELS)), "Dense_0__bias": (len(LABELS),)}
    for block in range(blocks):
        here = {"A_log": (WIDTH, STATE), "D": (WIDTH,), "Conv_0__kernel": (KERNEL, 1, WIDTH), "Conv_0__bias": (WIDTH,)}
        here |= {"LayerNorm_0__scale": (WIDTH,), "LayerNorm_0__bias": (WIDTH,)}
        for number, shape in dense.items():
            here |= {f"Dense_{number}__kernel": shape, f"Dense_{number}__bias": shape[1:]}
        shapes |= {f"CheckpointMambaBlock1D_{block}__{name}": shape for name, shape in here.items()}
    return {name: draw.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def norm(x: np.ndarray, w: dict, at: str) -> np.ndarray:
    deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return (x - x.mean(-1, keepdims=True)) / deviation * w[f"{at}LayerNorm_0__scale"] + w[f"{at}LayerNorm_0__bias"]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def scan(u: np.ndarray, step: np.ndarray, into: np.ndarray, out: np.ndarray, w: dict, at: str) -> np.ndarray:
    state, rows = np.zeros((WIDTH, STATE)), []
    for t in range(len(u)):
        state = np.exp(-step[t, :, None] * np.exp(w[f"{at}A_log"])) * state + (step[t] * u[t])[:, None] * into[t]
        rows.append(state @ out[t] + w[f"{at}D"] * u[t])
    return np.stack(rows)


def logits(w: dict, ids: np.ndarray, blocks: int = 2) -> np.ndarray:
    """The package's network in float64, read off its published code's equations."""
    x = w["Embed_0__embedding"][ids].astype(np.float64)
    for at in (f"CheckpointMambaBlock1D_{block}__" for block in range(blocks)):
        dense = [lambda v, n=n, at=at: v @ w[f"{at}Dense_{n}__kernel"] + w[f"{at}Dense_{n}__bias"] for n in range(4)]
        u, gate = np.split(dense[0](norm(x, w, at)), 2, axis=-1)
        window = np.pad(u, ((1, 2), (0, 0)))
        taps = w[f"{at}Conv_0__kernel"][:, 0]
        u = silu(sum(window[j : j + len(u)] * taps[j] for j in range(KERNEL)) + w[f"{at}Conv_0__bias"])
        low, into, out = np.split(dense[1](u), [RANK, RANK + STATE], axis=-1)
        step = np.logaddexp(0, dense[2](low)) + 1e-4
        y = scan(u, step, into, out, w, at) + scan(u[::-1], step[::-1], into[::-1], out[::-1], w, at)[::-1]
        x = x + dense[3](y * silu(gate))
    return norm(x, w, "") @ w["Dense_0__kernel"] + w["Dense_0__bias"]


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("example_convert_typeseg", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path, monkeypatch):
    """package(weights, answers) -> the folder of a package whose graph gives the logits of `answers`."""

    def make(weights: dict, answers: dict) -> Path:
        data = tmp_path / "typeseg" / "data"
        data.mkdir(parents=True)
        np.savez(data / "mamba_al.npz", **weights)
        (data / "manifest.json").write_text(json.dumps({"labels": LABELS}))
        (data / "mamba_al.onnx").write_bytes(b"graph")
        runtime = types.ModuleType("onnxruntime")
        runtime.__spec__ = importlib.util.spec_from_loader("onnxruntime", None)
        runtime.InferenceSession = lambda graph, providers: types.SimpleNamespace(
            run=lambda _, inputs: [logits(answers, inputs["ids"]).astype(np.float32)]
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        return data.parent

    return make


def test_the_tagger_is_converted_and_agrees(example, package, tmp_path, capsys):
    weights = draw_weights()
    text = tmp_path / "page.txt"
    text.write_text("def f(x):\n\treturn 'ünïcode' + x\n" * 3, encoding="utf-8")
    arguments = [str(tmp_path / "tagger"), "--package", str(package(weights, weights)), "--text", str(text)]
    assert example.main(arguments) == 0
    assert "100.00% same tags" in capsys.readouterr().out
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "tagger")
    assert list(model.config.id2label.values()) == LABELS
    ids = example.byte_ids(text.read_text(encoding="utf-8"))
    assert (ids == example.OTHER_BYTE).sum() == 3 * 4
    expected = torch.tensor(logits(weights, ids[0].numpy()))
    torch.testing.assert_close(model(ids).logits[0].double(), expected, rtol=0, atol=1e-5)


def test_padding_changes_no_tag(example):
    model = example.convert(draw_weights(), LABELS)
    ids = example.byte_ids("body { color: red }")
    padded = torch.nn.functional.pad(ids, (2, 5), value=example.PADDING)
    with torch.no_grad():
        found = model(padded, attention_mask=(padded != example.PADDING).long()).logits[:, 2:-5]
        torch.testing.assert_close(found, model(ids).logits, rtol=0, atol=1e-5)


def complaint(example, capsys, *arguments: str) -> str:
    assert example.main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("convert_typeseg.py: error: ")
    assert error.count("\n") == 1
    return error


def test_a_model_that_disagrees_is_not_saved(example, package, tmp_path, capsys):
    weights = draw_weights()
    changed = weights | {"Dense_0__bias": weights["Dense_0__bias"] + 0.01}
    arguments = [str(tmp_path / "tagger"), "--package", str(package(weights, changed))]
    assert "does not agree" in complaint(example, capsys, *arguments)
    assert not (tmp_path / "tagger").exists()


def test_what_is_no_package_is_named(example, package, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    found = complaint(example, capsys, str(tmp_path / "tagger"), "--package", str(tmp_path / "other"))
    assert "is not the package typeseg" in found
    weights = draw_weights()
    lacking = {name: value for name, value in weights.items() if name != "CheckpointMambaBlock1D_1__D"}
    found = complaint(example, capsys, str(tmp_path / "tagger"), "--package", str(package(lacking, weights)))
    assert "model.layers.1.mixer.D" in found
