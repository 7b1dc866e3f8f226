"""push: what it adds, what it leaves alone, where it goes, and what it refuses; against a Hub on this machine."""

import json
from pathlib import Path

import pytest
import torch
from architectures import CAUSAL
from hub_server import TOKEN, connected
from huggingface_hub.utils import close_session

from noria import hub
from noria.tokenization.characters import character_tokenizer


@pytest.fixture
def server():
    with connected() as running:
        yield running


@pytest.fixture
def plain_folder(tmp_path) -> Path:
    """What a user has without noria.hub: save_pretrained of a model and its tokenizer, and what stays at home."""
    folder = tmp_path / "model"
    CAUSAL[0].model(dtype=torch.float32).save_pretrained(folder)
    character_tokenizer("abc").save_pretrained(folder)
    for name in ("checkpoint-10/optimizer.pt", ".cache/note", "figures/loss.txt"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("x")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_push_adds_code_and_card_and_leaves_the_folder_alone(server, plain_folder):
    before = contents(plain_folder)
    hub.push(plain_folder, "small", token=TOKEN, private=True, commit_message="first")
    assert contents(plain_folder) == before
    repository = server.repositories["reader/small"]
    pushed = repository.branches["main"]
    assert repository.private
    assert {"README.md", "model.safetensors", "tokenizer.json", "figures/loss.txt"} <= set(pushed)
    assert not [name for name in pushed if name.startswith((".", "checkpoint-"))]
    assert "auto_map" in json.loads(pushed["config.json"])
    assert b'from_pretrained("reader/small", trust_remote_code=True)' in pushed["README.md"]
    for name, content in before.items():
        if name in pushed and name != "config.json":
            assert pushed[name] == content


def test_push_keeps_a_card_that_is_there(server, plain_folder):
    hub.push(plain_folder, "reader/small", token=TOKEN)
    server.repositories["reader/small"].branches["main"]["README.md"] = b"---\nlicense: mit\n---\nwritten on the Hub\n"
    hub.push(plain_folder, "reader/small", token=TOKEN)
    assert b"written on the Hub" in server.repositories["reader/small"].branches["main"]["README.md"]
    (plain_folder / "README.md").write_text("---\nlicense: mit\n---\nwritten here\n")
    hub.push(plain_folder, "reader/small", token=TOKEN)
    assert b"written here" in server.repositories["reader/small"].branches["main"]["README.md"]


def test_push_to_a_branch_and_as_a_proposal_and_without_code(server, plain_folder):
    assert "/discussions/1" in hub.push(plain_folder, "reader/small", token=TOKEN, create_pr=True)
    hub.push(plain_folder, "reader/small", token=TOKEN, revision="plain", code=False)
    branches = server.repositories["reader/small"].branches
    assert not branches["main"]
    assert "modeling_backbone.py" in branches["refs/pr/1"]
    assert "model.safetensors" in branches["plain"]
    assert not [name for name in branches["plain"] if name.endswith(".py")]


def test_push_refuses_what_cannot_work(server, plain_folder, tmp_path):
    def refused(message: str, folder: Path = plain_folder, repo: str = "reader/small", **options):
        with pytest.raises((ValueError, OSError), match=message):
            hub.push(folder, repo, **({"token": TOKEN} | options))

    refused("is not a folder", tmp_path / "nowhere")
    refused("config.json is missing", tmp_path)
    refused("no token", token=None)
    refused("Repo id must", repo="a/b/c")
    refused("(?i)invalid credentials", token="hf_wrong")
    assert not server.repositories
    hub.push(plain_folder, "reader/small", token=TOKEN)
    refused("exists and is public", private=True)
    server.stop()
    close_session()
    refused("cannot be reached", repo="reader/new")
    (plain_folder / "model.safetensors").unlink()
    refused("model.safetensors is missing")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (plain_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("lacks model-00001-of-00002.safetensors")
    (plain_folder / "model.safetensors").write_bytes(b"cut")
    refused("not a whole safetensors file")
    (plain_folder / "config.json").write_text("{")
    refused("not valid JSON")
    (plain_folder / "config.json").write_text('{"model_type": "gpt2"}')
    refused("'gpt2' is not an architecture of noria")
