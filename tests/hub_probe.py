"""What a loaded model answers, and two scripts that ask flat copies for it: `hub_probe.py alone|beside JOB.json`.

`alone` runs where there is no noria. `beside` loads flat copies before and after an installed noria.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

MODES = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "static": {"cache_implementation": "static"},
}


def answers(model, modes=tuple(MODES)) -> dict:
    """The outputs for a fixed input of one row, and, where the model generates, its texts in every mode."""
    import torch

    tokens = torch.arange(5, 24)[None] % 7 + 1
    choices = type(model).__name__.endswith("ForMultipleChoice")
    with torch.no_grad():
        found = {"output": model(tokens[None] if choices else tokens)[0]}
        for mode in modes if model.can_generate() else ():
            found[mode] = model.generate(
                tokens, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, **MODES[mode]
            )
    return found


def continued(model, cache) -> dict:
    """The logits of two rows, one of them padded on the left, that go on from `cache` at the places it remembers."""
    import torch

    tokens = torch.arange(5, 17).view(2, 6) % 7 + 1
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    with torch.no_grad():
        model(tokens[:, :4], attention_mask=mask[:, :4], past_key_values=cache)
        return {"continued": model(tokens[:, 4:], past_key_values=cache).logits}


def compiled(model) -> dict:
    """The logits from one whole graph, in which fast forms are custom operators: no copy may take another's name."""
    import torch

    torch.compiler.reset()  # all models share transformers' decorators, whose graphs are counted
    graph = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        return {"compiled": graph(torch.arange(1, 41)[None]).logits}


def load(folder, auto: str, **options):
    """A model by its Auto class; what its files lack is drawn under one seed, so that it is the same everywhere."""
    import torch
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, auto).from_pretrained(folder, **options).eval()


def alone(job: dict) -> dict:
    """Every head of every folder or repository, then again from what the remote language model itself has saved."""
    assert importlib.util.find_spec("noria") is None, "this process should have no noria"
    found = {}
    for folder, heads in job["folders"].items():
        saved = Path(job["scratch"]) / folder.replace("/", "_")
        for auto in heads:
            model = load(folder, auto, trust_remote_code=True)
            assert type(model).__module__.startswith("transformers_modules."), type(model)
            found[f"{folder} {auto}"] = answers(model)
            if auto == "AutoModelForCausalLM":
                model.save_pretrained(saved)
        for auto in heads if saved.exists() else ():
            found[f"{folder} {auto} again"] = answers(load(saved, auto, trust_remote_code=True), ("greedy",))
    return found


def beside(job: dict) -> dict:
    """One copy from before noria is imported, noria itself, a copy from after it, and a copy of another version."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    models = {}
    for folder in job["folders"]:
        models[f"{folder} before"] = load(folder, "AutoModelForCausalLM", trust_remote_code=True)
    assert "noria" not in sys.modules
    import noria

    for folder, entry in job["folders"].items():
        installed = models[f"{folder} installed"] = load(folder, "AutoModelForCausalLM", trust_remote_code=True)
        assert type(installed).__module__.startswith("noria."), "an installed noria goes before the copy"
        for kind, place in (("after", entry["copy"]), ("other", entry["other"])):
            copy = get_class_from_dynamic_module(entry["class"], place)
            models[f"{folder} {kind}"] = copy.from_pretrained(place).eval()
    found = {name: answers(model) for name, model in models.items()}
    for name, model in models.items():
        found[f"{name} once more"] = answers(model, ("greedy", "static"))
        if not name.endswith("after"):
            found[f"{name} compiled"] = compiled(model)
        if not name.endswith("other"):
            found[f"{name} continued"] = continued(model, noria.NoriaCache(model.config))
    return found


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    sys.path += job.get("libraries", [])
    import torch

    torch.set_num_threads(1)
    torch.save({"alone": alone, "beside": beside}[sys.argv[1]](job), job["results"])
