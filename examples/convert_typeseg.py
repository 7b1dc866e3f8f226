"""The tagger of the package typeseg, a trained bidirectional Mamba that tells languages in a text, as a noria model.

    pip install typeseg onnxruntime
    python examples/convert_typeseg.py tagger
    python examples/convert_typeseg.py tagger --text page.html notes.md

The weights are those of the installed package. The model is compared with the ONNX graph that comes with them: every
logit, and the tag of every byte. Afterwards `AutoModelForTokenClassification.from_pretrained("tagger")` has it.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noria import NoriaMambaConfig, NoriaMambaForTokenClassification
from noria.cli import Parser
from noria.conversion.target import atomic_folder, check_target

BLOCK = "CheckpointMambaBlock1D_"
OTHER_BYTE, PADDING = 128, 129
TOLERANCE = 1e-4
LAYER = "model.layers.0.mixer."
# Its names for the tensors of a block and of the whole, as flax counts layers, and ours.
BLOCK_NAMES = {
    "LayerNorm_0": "mixer_norm",
    "Dense_0": "mixer.in_proj",
    "Conv_0": "mixer.conv",
    "Dense_1": "mixer.x_proj",
    "Dense_2": "mixer.dt_proj",
    "Dense_3": "mixer.out_proj",
    "A_log": "mixer.A_log",
    "D": "mixer.D",
}
OUTER_NAMES = {"Embed_0": "model.embed_tokens", "LayerNorm_0": "model.norm", "Dense_0": "classifier"}


def installed(package: Path | None) -> Path:
    """The folder `data` of the package. Raises ValueError where there is none with a Mamba in it."""
    spec = None if package else find_spec("typeseg")
    root = package or (Path(spec.origin).parent if spec and spec.origin else None)
    if root is None:
        raise ValueError("the package typeseg is not installed: pip install typeseg onnxruntime")
    for name in ("manifest.json", "mamba_al.npz"):
        if not (root / "data" / name).is_file():
            raise ValueError(f"{root} is not the package typeseg, version 0.2: data/{name} is missing")
    return root / "data"


def convert(weights: Mapping[str, np.ndarray], labels: Sequence[str]) -> NoriaMambaForTokenClassification:
    """The model with these weights. Raises ValueError where they are not those of this architecture."""
    if f"{BLOCK}0__A_log" not in weights:
        raise ValueError(f"there is no Mamba among {', '.join(list(weights)[:3])}, ...")
    tensors = dict(rename(name, torch.tensor(value)) for name, value in weights.items())
    (inner, state), (vocabulary, width) = (tensors[n].shape for n in (f"{LAYER}A_log", "model.embed_tokens.weight"))
    config = NoriaMambaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        inner_size=inner,
        expand=inner / width,
        state_size=state,
        num_hidden_layers=len({name.partition("__")[0] for name in weights if name.startswith(BLOCK)}),
        time_step_rank=tensors[f"{LAYER}dt_proj.weight"].shape[1],
        conv_kernel=tensors[f"{LAYER}conv.weight"].shape[1],
        time_step_offset=1e-4,
        use_bias=True,
        use_projection_bias=True,
        norm="layer_norm",
        norm_eps=1e-6,
        bidirectional=True,
        tie_word_embeddings=False,
        pad_token_id=PADDING if vocabulary > PADDING else None,
        bos_token_id=None,
        eos_token_id=None,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model = NoriaMambaForTokenClassification(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the weights are not those of a bidirectional Mamba: {error}") from error
    return model.eval()


def rename(name: str, value: Tensor) -> tuple[str, Tensor]:
    """Our name and shape of a tensor: flax's dense kernels are (in out), those of convolutions (k 1 d)."""
    first, _, rest = name.partition("__")
    if first.startswith(BLOCK):
        part, _, kind = rest.partition("__")
        ours = f"model.layers.{first.removeprefix(BLOCK)}.{BLOCK_NAMES.get(part, part)}"
    else:
        part, kind, ours = first, rest, OUTER_NAMES.get(first, first)
    if part == "Dense_2" and kind == "bias":
        return f"{ours.removesuffix('dt_proj')}dt_bias", value
    if kind == "kernel":
        value = value[:, 0].t() if part.startswith("Conv") else value.t()
    return f"{ours}.{'bias' if kind == 'bias' else 'weight'}" if kind else ours, value.contiguous()


def byte_ids(text: str) -> Tensor:
    """One id for each byte (1 t): ASCII text for itself, everything else as one placeholder."""
    ids = [byte if 32 <= byte < 127 or byte in b"\t\n\r" else OTHER_BYTE for byte in text.encode()]
    if not ids:
        raise ValueError("there is no text to tag")
    return torch.tensor([ids])


@torch.no_grad()
def compare(model: NoriaMambaForTokenClassification, data: Path, texts: Sequence[str]) -> tuple[float, float]:
    """The largest difference of a logit from the ONNX graph's, and the share of bytes that get the same tag."""
    if find_spec("onnxruntime") is None:
        raise ValueError(
            "onnxruntime is not installed, with which the package's own graph runs: pip install onnxruntime"
        )
    from onnxruntime import InferenceSession

    session = InferenceSession((data / "mamba_al.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    errors, same = [], []
    for text in texts:
        ids = byte_ids(text)
        expected = torch.from_numpy(session.run(None, {"ids": ids[0].numpy()})[0])
        found = model(ids).logits[0]
        errors.append((found - expected).abs().max())
        same.append(found.argmax(-1) == expected.argmax(-1))
    return torch.stack(errors).max().item(), torch.cat(same).double().mean().item()


@torch.no_grad()
def shares(model: NoriaMambaForTokenClassification, text: str) -> dict[str, float]:
    """The tags of a text's bytes, the most frequent first, each with its share."""
    numbers, counts = model(byte_ids(text)).logits[0].argmax(-1).unique(return_counts=True)
    found = zip(numbers.tolist(), (counts / counts.sum()).tolist(), strict=True)
    return {model.config.id2label[n]: share for n, share in sorted(found, key=lambda pair: -pair[1])}


def run(target: Path, text: Sequence[Path], package: Path | None) -> None:
    check_target(target)
    data = installed(package)
    names = list(text) or [Path(__file__)]
    texts = [name.read_text(encoding="utf-8") for name in names]
    labels = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["labels"]
    with np.load(data / "mamba_al.npz") as weights:
        model = convert({name: weights[name] for name in weights.files}, labels)
    error, same = compare(model, data, texts)
    print(
        f"{sum(len(t.encode()) for t in texts)} bytes: largest difference of a logit {error:.1e}, {same:.2%} same tags"
    )
    if error > TOLERANCE or same < 1:
        raise ValueError(f"the model does not agree with the package's to {TOLERANCE}, and is not saved")
    for name, content in zip(names, texts, strict=True):
        tags = ", ".join(f"{label} {share:.0%}" for label, share in list(shares(model, content).items())[:3])
        print(f"{name.name}: {tags}")
    with atomic_folder(target) as part:
        model.save_pretrained(part)
    print(f"{model.num_parameters():,} parameters in {target}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="convert_typeseg.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", type=Path, help="folder for the model, new or empty")
    parser.add_argument("--text", nargs="+", type=Path, default=[], help="files to tag (this script)")
    parser.add_argument("--package", type=Path, help="folder of the package typeseg, if it is not installed here")
    try:
        run(**vars(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        print(f"convert_typeseg.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
