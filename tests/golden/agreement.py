"""How far converted RoFormers are from what their original recorded: the largest absolute differences in float32.

python tests/golden/agreement.py
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import noria

GOLDEN = Path(__file__).parent
CASES = ("roformer_v1", "roformer_v1_embed", "roformer_gpt", "roformer_sim", "roformer_v2")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@torch.no_grad()
def measure(case: str, folder: Path) -> dict[str, float]:
    """The differences of the hidden states, the logits and, where there is a pooler, its output; the largest logit.

    folder: where the checkpoint is converted to. A padded token of a UniLM row sees itself here and nothing there, so
    padded rows of "roformer_sim" are left out; in all others they are counted.
    """
    noria.convert("bert4keras", GOLDEN / case, folder)
    recorded = load_file(GOLDEN / case / "inputs_outputs.safetensors")
    inputs = {name: recorded[name] for name in INPUTS}
    causal = case in ("roformer_gpt", "roformer_sim")
    model_class = noria.NoriaRoFormerForCausalLM if causal else noria.NoriaRoFormerForMaskedLM
    model = model_class.from_pretrained(folder).eval()
    outputs = model(**inputs, output_hidden_states=True)
    rows = inputs["attention_mask"].bool() | (case != "roformer_sim")
    states = [recorded["embedding_output"], recorded["hidden_states.1"], recorded["hidden_states.2"]]
    pairs = zip(outputs.hidden_states, states, strict=True)
    found = {"hidden states": max((ours - theirs)[rows].abs().max().item() for ours, theirs in pairs)}
    found["logits"] = (outputs.logits - recorded["logits"])[rows].abs().max().item()
    if "pooled" in recorded:
        found["pooled"] = (model.model(**inputs).pooler_output - recorded["pooled"]).abs().max().item()
    return found | {"largest logit": recorded["logits"].abs().max().item()}


if __name__ == "__main__":
    for case in CASES:
        with tempfile.TemporaryDirectory() as place:
            measured = measure(case, Path(place) / "model")
        print(f"{case:<18}", *(f"{name} {x:.1e}" for name, x in measured.items() if name != "largest logit"), end="")
        print(f" largest logit {measured['largest logit']:.1f}")
