"""One thread for every worker, no network, and the parameter `entry` that runs a law over a list of the table."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tokens():
    """tokens(batch, length): random ids, none of which is the padding token."""

    def draw(batch: int, length: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(1, 61, (batch, length), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(scope="module")
def taming(tmp_path_factory):
    """taming(case) -> (case.json, recorded tensors, the folder converted with the yaml beside the checkpoint)"""
    from safetensors.torch import load_file

    import noria  # here, so that tests of the import itself begin without it

    folder = tmp_path_factory.mktemp("golden")

    def load(case: str):
        if not (folder / case).exists():
            noria.convert("taming", GOLDEN / case, folder / case)
        about = json.loads((GOLDEN / case / "case.json").read_text())
        return about, load_file(GOLDEN / case / "inputs_outputs.safetensors"), folder / case

    return load
