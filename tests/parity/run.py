"""noria against the originals in PyTorch, with random weights, both ways: `make parity` runs this.

For every case the original's model is converted and its outputs compared; then the converted model's weights are
changed, it is exported, and the original computes with what it reads. Printed are the largest differences in float32.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from cases import CASES, OUTPUTS, SIZES, VOCABULARY
from safetensors.torch import load_file
from transformers import RoFormerConfig, RoFormerForMaskedLM
from transformers.utils.logging import disable_progress_bar

import noria

HERE = Path(__file__).parent
LIMIT = 1e-4
TOGETHER = 17
ROW = "{:<36} {:<26} {:>10} {:>10}"
TAMING = "taming-transformers-rom1504"
FORMATS = {"transformers": "transformers", "roformer": "junnyu", "rwkv": "rwkv", TAMING: "taming"}
SCRIPTS = {"rwkv": "upstream_rwkv.py", TAMING: "upstream_taming.py"}


def upstream(python: str, family: str, package: str, task: str, folder: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    command = [python, str(HERE / SCRIPTS.get(package, "upstream.py")), family, package, task, str(folder)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def title(python: str, package: str) -> str:
    script = f"from importlib.metadata import version; print({package!r}, version({package!r}))"
    return subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


def largest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference; what is no number counts as infinite, which no comparison of numbers would notice."""
    return (found - expected).abs().nan_to_num(nan=torch.inf).max().item()


@torch.no_grad()
def roformer_difference(model: torch.nn.Module, recorded: dict[str, torch.Tensor]) -> float:
    """The largest difference in all outputs, at padded tokens too, but for UniLM: there they see themselves here."""
    inputs = {name: recorded[name] for name in ("input_ids", "attention_mask")}
    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    outputs = model.eval()(**inputs, position_ids=positions)
    if "pooler_output" in recorded:
        trunk = model.base_model(**inputs, position_ids=positions)
        outputs["pooler_output"] = trunk.pooler_output
    real = inputs["attention_mask"].bool() if model.config.unilm else torch.ones_like(inputs["input_ids"]).bool()
    pairs = [(outputs[name], recorded[name]) for name in OUTPUTS if name in recorded]
    rows = [(x[real], y[real]) if x.shape[:2] == real.shape else (x, y) for x, y in pairs]
    return max(largest(x, y) for x, y in rows)


@torch.no_grad()
def recurrent_difference(model: torch.nn.Module, recorded: dict[str, torch.Tensor]) -> float:
    """The largest difference at tokens that are not padding, of whole texts and of texts continued from a state."""
    name = next(name for name in OUTPUTS if name in recorded)
    ids, mask = recorded["input_ids"], recorded["attention_mask"]
    real, whole = mask.bool(), mask.bool().all(1)
    found = model.eval()(ids, attention_mask=mask)[name]
    first = model(ids[whole, :TOGETHER], use_cache=True)
    parts, cache = [first[name]], first.past_key_values
    for token in ids[whole, TOGETHER:].split(1, dim=1):
        out = model(token, past_key_values=cache, use_cache=True)
        parts, cache = [*parts, out[name]], out.past_key_values
    expected = recorded[name]
    return max(largest(found[real], expected[real]), largest(torch.cat(parts, 1), expected[whole]))


@torch.no_grad()
def vqgan_difference(model: torch.nn.Module, recorded: dict[str, torch.Tensor]) -> float:
    """The largest difference in a second stage's logits, or in latents and pixels; infinite where codes differ."""
    pixels = recorded["pixel_values"]
    if "logits" in recorded:
        found = model.eval()(pixel_values=pixels, condition=recorded.get("condition")).logits
        return largest(found, recorded["logits"])
    encoded = model.eval().encode(pixels)
    if not torch.equal(encoded.codes, recorded["codes"]):
        return torch.inf
    decoded = model.decode_codes(encoded.codes)
    return max(largest(encoded.latents, recorded["latents"]), largest(decoded, recorded["reconstruction"]))


DIFFERENCES = {
    "roformer": roformer_difference,
    "mamba": recurrent_difference,
    "rwkv": recurrent_difference,
    "vqgan": vqgan_difference,
}


def load(folder: Path) -> torch.nn.Module:
    architecture = json.loads((folder / "config.json").read_text("utf-8"))["architectures"][0]
    return getattr(noria, architecture).from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def change(folder: Path) -> torch.nn.Module:
    """Changes the weights of a converted model, in the precision that its file has, and saves it; in float32."""
    model = load(folder)
    precision = getattr(torch, json.loads((folder / "config.json").read_text("utf-8"))["dtype"])
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.to(precision).save_pretrained(folder)
    return load(folder)


def compare(python: str, family: str, package: str, folder: Path) -> list[tuple[str, float, float]]:
    names, difference = CASES[family][package], DIFFERENCES[family]
    upstream(python, family, package, "write", folder)
    forth, changed = {}, {}
    for name in names:
        place = folder / name
        noria.convert(FORMATS[package], place / "source", place / "model")
        forth[name] = difference(load(place / "model"), load_file(place / "written.safetensors"))
        changed[name] = change(place / "model")
        noria.export(FORMATS[package], place / "model", place / "back")
    upstream(python, family, package, "read", folder)
    back = {name: difference(changed[name], load_file(folder / name / "read.safetensors")) for name in names}
    return [(name, forth[name], back[name]) for name in names]


@torch.no_grad()
def mask_of_four_dimensions(folder: Path) -> dict[str, float]:
    """How far a causal mask of shape (b 1 t t) is from the same mask added to the scores, in transformers."""
    torch.manual_seed(0)
    original = RoFormerForMaskedLM(RoFormerConfig(vocab_size=VOCABULARY, **SIZES["roformer"])).eval()
    original.save_pretrained(folder / "source")
    noria.convert("transformers", folder / "source", folder / "model")
    ours = load(folder / "model").eval()
    ids = torch.randint(1, VOCABULARY, (2, 12))
    visible = torch.ones(12, 12).tril().bool().expand(2, 1, 12, 12)
    added = torch.zeros(2, 1, 12, 12).masked_fill(~visible, torch.finfo(torch.float32).min)
    truth = original(ids, attention_mask=added).logits
    answers = {
        "transformers, boolean": original(ids, attention_mask=visible).logits,
        "noria, boolean": ours(ids, attention_mask=visible).logits,
        "noria, additive": ours(ids, attention_mask=added).logits,
    }
    return {name: largest(logits, truth) for name, logits in answers.items()}


def rows(family: str, originals: list[tuple[str, str]]) -> Iterator[float]:
    """Prints the rows of a family and tells the differences that are noria's."""
    for python, package in originals:
        with tempfile.TemporaryDirectory() as folder:
            original = title(python, package)
            for name, forth, back in compare(python, family, package, Path(folder)):
                print(ROW.format(original, name, f"{forth:.1e}", f"{back:.1e}"), flush=True)
                yield max(forth, back)
    if family == "roformer":
        with tempfile.TemporaryDirectory() as folder:
            for name, error in mask_of_four_dimensions(Path(folder)).items():
                print(ROW.format(f"4-D mask: {name}", "masked", f"{error:.1e}", ""), flush=True)
                yield error if name.startswith("noria") else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="the families to compare")
    parser.add_argument("--old-python", help="for roformer: an interpreter with transformers 4.30.2, roformer 0.4.3")
    parser.add_argument("--rwkv-python", help="for rwkv: an interpreter with the package rwkv 0.8.32")
    parser.add_argument("--vqgan-python", help=f"for vqgan: an interpreter with {TAMING} 0.0.6")
    options = parser.parse_args()
    for family, needed in (("roformer", "old_python"), ("rwkv", "rwkv_python"), ("vqgan", "vqgan_python")):
        if family in options.only and getattr(options, needed) is None:
            parser.error(f"{family} needs --{needed.replace('_', '-')}")
    here, old = (sys.executable, "transformers"), options.old_python
    originals = {
        "roformer": [(old, "roformer"), (old, "transformers"), here],
        "mamba": [here],
        "rwkv": [here, (options.rwkv_python, "rwkv")],
        "vqgan": [(options.vqgan_python, TAMING)],
    }
    disable_progress_bar()
    print(ROW.format("original", "case", "to noria", "from noria"))
    worst = max(error for family in options.only for error in rows(family, originals[family]))
    print(f"largest difference {worst:.1e}, limit {LIMIT:.0e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
