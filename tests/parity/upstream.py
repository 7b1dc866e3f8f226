"""The originals' side of the comparison, run by the interpreter that has them: upstream.py PACKAGE write|read FOLDER.

`write` saves each case's model and what it gives; `read` loads the folders that noria exported and tells the same.
"""

import importlib
import sys
from pathlib import Path

import torch
from cases import CASES, OUTPUTS, SIZES
from safetensors.torch import save_file
from transformers.utils.logging import disable_progress_bar


def make_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 24, dtype=torch.int64)
    mask[1, 15:] = 0
    mask[3, 2:] = 0
    return {"input_ids": torch.randint(1, SIZES["vocab_size"], (4, 24), generator=generator), "attention_mask": mask}


@torch.no_grad()
def save_outputs(model: torch.nn.Module, path: Path) -> None:
    inputs = make_inputs()
    outputs = model.eval()(**inputs)
    found = {name: outputs[name].contiguous() for name in OUTPUTS if outputs.get(name) is not None}
    save_file(inputs | found, path)


def main(package: str, task: str, folder: Path) -> None:
    disable_progress_bar()
    module = importlib.import_module(package)
    for number, (name, (head, options)) in enumerate(CASES[package].items()):
        place = folder / name
        if task == "write":
            torch.manual_seed(number)
            model = getattr(module, head)(module.RoFormerConfig(**{**SIZES, **options}))
            for key, parameter in model.named_parameters():
                if key.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(place / "source")
            save_outputs(model, place / "written.safetensors")
        else:
            save_outputs(getattr(module, head).from_pretrained(place / "back"), place / "read.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
