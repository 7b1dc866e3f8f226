"""RoFormer against its originals in PyTorch, with random weights, both ways: `make parity` runs this.

For every case the original's model is converted and its outputs compared; then the converted model's weights are
changed, it is exported, and the original computes with what it reads. Printed are the largest differences in float32.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from cases import CASES, OUTPUTS, SIZES
from safetensors.torch import load_file
from transformers import RoFormerConfig, RoFormerForMaskedLM
from transformers.utils.logging import disable_progress_bar

import noria

HERE = Path(__file__).parent
LIMIT = 1e-4
ROW = "{:<30} {:<20} {:>10} {:>10}"
FORMATS = {"transformers": "transformers", "roformer": "junnyu"}


def upstream(python: str, package: str, task: str, folder: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    command = [python, str(HERE / "upstream.py"), package, task, str(folder)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def title(python: str, package: str) -> str:
    script = f"from importlib.metadata import version; print({package!r}, version({package!r}))"
    return subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


@torch.no_grad()
def difference(model: torch.nn.Module, recorded: dict[str, torch.Tensor]) -> float:
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
    return max((x - y).abs().max().item() for x, y in rows)


def load(folder: Path) -> torch.nn.Module:
    architecture = json.loads((folder / "config.json").read_text("utf-8"))["architectures"][0]
    return getattr(noria, architecture).from_pretrained(folder)


def compare(python: str, package: str, folder: Path) -> list[tuple[str, float, float]]:
    upstream(python, package, "write", folder)
    forth, changed = {}, {}
    for name in CASES[package]:
        place = folder / name
        noria.convert(FORMATS[package], place / "source", place / "model")
        changed[name] = load(place / "model")
        forth[name] = difference(changed[name], load_file(place / "written.safetensors"))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in changed[name].parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        changed[name].save_pretrained(place / "model")
        noria.export(FORMATS[package], place / "model", place / "back")
    upstream(python, package, "read", folder)
    back = {name: difference(changed[name], load_file(folder / name / "read.safetensors")) for name in CASES[package]}
    return [(name, forth[name], back[name]) for name in CASES[package]]


@torch.no_grad()
def mask_of_four_dimensions(folder: Path) -> dict[str, float]:
    """How far a causal mask of shape (b 1 t t) is from the same mask added to the scores, in transformers."""
    torch.manual_seed(0)
    original = RoFormerForMaskedLM(RoFormerConfig(**SIZES)).eval()
    original.save_pretrained(folder / "source")
    noria.convert("transformers", folder / "source", folder / "model")
    ours = load(folder / "model").eval()
    ids = torch.randint(1, SIZES["vocab_size"], (2, 12))
    visible = torch.ones(12, 12).tril().bool().expand(2, 1, 12, 12)
    added = torch.zeros(2, 1, 12, 12).masked_fill(~visible, torch.finfo(torch.float32).min)
    truth = original(ids, attention_mask=added).logits
    answers = {
        "transformers, boolean": original(ids, attention_mask=visible).logits,
        "noria, boolean": ours(ids, attention_mask=visible).logits,
        "noria, additive": ours(ids, attention_mask=added).logits,
    }
    return {name: (logits - truth).abs().max().item() for name, logits in answers.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--old-python", required=True, help="an interpreter with transformers 4.30.2 and roformer 0.4.3"
    )
    old = parser.parse_args().old_python
    disable_progress_bar()
    largest = 0.0
    print(ROW.format("original", "case", "to noria", "from noria"))
    for python, package in ((old, "roformer"), (old, "transformers"), (sys.executable, "transformers")):
        with tempfile.TemporaryDirectory() as folder:
            original = title(python, package)
            for name, forth, back in compare(python, package, Path(folder)):
                print(ROW.format(original, name, f"{forth:.1e}", f"{back:.1e}"))
                largest = max(largest, forth, back)
    with tempfile.TemporaryDirectory() as folder:
        for name, error in mask_of_four_dimensions(Path(folder)).items():
            print(ROW.format(f"4-D mask: {name}", "masked", f"{error:.1e}", ""))
            largest = max(largest, error if name.startswith("noria") else 0.0)
    print(f"largest difference {largest:.1e}, limit {LIMIT:.0e}")
    return int(largest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
