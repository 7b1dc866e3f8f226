"""The originals' side of the comparison, run by the interpreter that has them.

upstream.py FAMILY PACKAGE write|read FOLDER: `write` saves each case's model and what it gives; `read` loads the
folders that noria exported and tells the same.
"""

import importlib
import sys
from pathlib import Path

import torch
from cases import CASES, OUTPUTS, SIZES, USED, VOCABULARY
from safetensors.torch import save_file
from transformers.utils.logging import disable_progress_bar


def make_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 24, dtype=torch.int64)
    mask[1, 15:] = 0
    mask[3, 2:] = 0
    return {"input_ids": torch.randint(1, VOCABULARY, (4, 24), generator=generator), "attention_mask": mask}


@torch.no_grad()
def save_outputs(model: torch.nn.Module, path: Path) -> None:
    inputs = make_inputs()
    outputs = model.eval()(**inputs)
    found = {name: outputs[name].contiguous() for name in OUTPUTS if outputs.get(name) is not None}
    save_file(inputs | found, path)


@torch.no_grad()
def draw(model: torch.nn.Module, family: str) -> None:
    """Makes everything count that begins as zero, as one or nearly so: biases; in recurrent models every parameter."""
    for key, parameter in model.named_parameters():
        if family != "roformer":
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        elif key.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)


def main(family: str, package: str, task: str, folder: Path) -> None:
    disable_progress_bar()
    module = importlib.import_module(package)
    for number, (name, (head, options)) in enumerate(CASES[family][package].items()):
        place, kind = folder / name, getattr(module, head)
        if task == "write":
            torch.manual_seed(number)
            model = kind(kind.config_class(**{"vocab_size": VOCABULARY, **SIZES[family], **options}))
            draw(model, family)
            if name in USED:
                model.eval()(**make_inputs())
            model.save_pretrained(place / "source")
            save_outputs(model, place / "written.safetensors")
        else:
            model = kind.from_pretrained(place / "back")
            if name in USED:
                # Nothing in a folder says so, and transformers would halve what is halved already.
                model.base_model.layers_are_rescaled = True
            save_outputs(model, place / "read.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]))
