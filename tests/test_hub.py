"""Law 13: the flat code of every architecture works without noria and beside it, from a folder and from a Hub."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import hub_probe
import pytest
import torch
from architectures import CAUSAL, ENTRIES
from hub_server import TOKEN, connected
from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_relative_imports

from noria import ARCHITECTURES, NoriaRoFormerConfig, NoriaRoFormerModel, hub
from noria.configuration.decoder import RECURRENT_LAYER_TYPE
from noria.flat_code import flatten
from noria.tokenization.characters import character_tokenizer

# One worker runs them all: the subprocesses and the saved models are shared.
pytestmark = pytest.mark.xdist_group("hub")

PROBE = Path(hub_probe.__file__)
CAUSAL_LM = "AutoModelForCausalLM"
ONE_OF_EACH = {entry.config_class.model_type: entry for entry in CAUSAL}


def heads(folder: Path) -> list[str]:
    """The Auto classes that a folder's auto_map names, beside the configuration's."""
    return sorted(set(json.loads((folder / "config.json").read_text())["auto_map"]) - {"AutoConfig"})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def saved(place) -> dict[str, Path]:
    """A folder for every entry of the table, by its name; the language model where there is one."""
    folders = {}
    for entry in ENTRIES:
        head = "ForCausalLM" if "ForCausalLM" in entry.models else "Model"
        folders[entry.name] = hub.save(entry.model(head, torch.float32), place / "saved" / entry.name)
    return folders


@pytest.fixture(scope="module")
def libraries(place) -> list[str]:
    """Folders with everything that is installed here, but noria."""
    links = place / "libraries"
    links.mkdir()
    for folder in map(Path, sys.path):
        if folder.name.endswith("-packages") and folder.is_dir():
            for entry in folder.iterdir():
                if "noria" not in entry.name and not (links / entry.name).exists():
                    (links / entry.name).symlink_to(entry)
    return [str(links)]


def probe(mode: str, place: Path, job: dict, **environment: str) -> dict:
    """What hub_probe finds in a process of its own; in `alone` that process sees nothing but `job["libraries"]`."""
    file = place / f"{mode}-{len(list(place.iterdir()))}.json"
    job |= {"results": str(file.with_suffix(".pt")), "scratch": str(file.with_suffix(".d"))}
    file.write_text(json.dumps(job))
    flags = ["-I", "-S"] if mode == "alone" else []
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    settings = {"HF_HOME": str(place / "home"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, *flags, str(PROBE), mode, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=inherited | settings, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(job["results"])


def expected(folder: Path, auto: str) -> dict:
    """The answers of the installed classes."""
    model = hub_probe.load(folder, auto)
    assert type(model).__module__.startswith("noria.")
    return hub_probe.answers(model)


def assert_equal(found: dict, wanted: dict) -> None:
    assert found, "nothing was asked"
    for what, tensor in found.items():
        assert tensor.dtype == wanted[what].dtype, what
        assert torch.equal(tensor, wanted[what]), what


@pytest.fixture(scope="module")
def found_alone(place, saved, libraries) -> dict:
    """Every saved folder, and one repository of each architecture, in one process without noria."""
    folders = {str(folder): heads(folder) for folder in saved.values()}
    with connected() as server:
        for entry in ONE_OF_EACH.values():
            hub.push(saved[entry.name], f"reader/{entry.name}", token=TOKEN)
            folders[f"reader/{entry.name}"] = heads(saved[entry.name])
        environment = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment |= {"DISABLE_SAFETENSORS_CONVERSION": "1", "HF_HUB_DISABLE_XET": "1"}
        return probe("alone", place, {"folders": folders, "libraries": libraries}, **environment)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_without_noria_every_head_answers_as_the_installed_one(entry, saved, found_alone):
    folder = saved[entry.name]
    assert len(heads(folder)) == len(entry.models)
    for auto in heads(folder):
        assert_equal(found_alone[f"{folder} {auto}"], expected(folder, auto))


@pytest.mark.parametrize("entry", CAUSAL, ids=str)
def test_what_the_remote_class_saves_loads_again(entry, saved, found_alone):
    folder = saved[entry.name]
    for auto in heads(folder):
        assert_equal(found_alone[f"{folder} {auto} again"], expected(folder, auto))


@pytest.mark.parametrize("entry", ONE_OF_EACH.values(), ids=str)
def test_a_pushed_model_loads_from_the_hub_without_noria(entry, saved, found_alone):
    folder, repo = saved[entry.name], f"reader/{entry.name}"
    for auto in heads(folder):
        assert_equal(found_alone[f"{repo} {auto}"], expected(folder, auto))
        assert_equal(found_alone[f"{repo} {auto} again"], expected(folder, auto))


@pytest.fixture(scope="module")
def found_beside(place, saved) -> dict:
    folders = {}
    for entry in ONE_OF_EACH.values():
        folder, other = saved[entry.name], place / "other" / entry.name
        copy = place / "copy" / entry.name
        for target in (other, copy):
            hub.save(hub_probe.load(folder, CAUSAL_LM), target)
        for path in other.glob("*.py"):
            path.write_text(path.read_text().replace(RECURRENT_LAYER_TYPE, "noria_recurrent_99"))
        name = json.loads((copy / "config.json").read_text())["auto_map"][CAUSAL_LM]
        folders[str(folder)] = {"class": name, "copy": str(copy), "other": str(other)}
    return probe("beside", place, {"folders": folders})


@pytest.mark.parametrize("kind", ["before", "installed", "after", "other"])
@pytest.mark.parametrize("entry", ONE_OF_EACH.values(), ids=str)
def test_copies_and_an_installed_noria_live_side_by_side(entry, kind, saved, found_beside):
    folder = saved[entry.name]
    for name in (f"{folder} {kind}", f"{folder} {kind} once more"):
        assert_equal(found_beside[name], expected(folder, CAUSAL_LM))


@pytest.mark.parametrize("kind", ["before", "other"])
@pytest.mark.parametrize("entry", ONE_OF_EACH.values(), ids=str)
def test_copies_compile_side_by_side(entry, kind, saved, found_beside):
    name = f"{saved[entry.name]} {{}} compiled"
    assert_equal(found_beside[name.format(kind)], found_beside[name.format("installed")])


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("entry", ONE_OF_EACH.values(), ids=str)
def test_a_copy_continues_a_cache_of_the_installed_noria(entry, kind, saved, found_beside):
    name = f"{saved[entry.name]} {{}} continued"
    assert_equal(found_beside[name.format(kind)], found_beside[name.format("installed")])


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_flat_files_need_each_other_and_nothing_else(entry, saved):
    """transformers finds imports with a regular expression: no text may look like one, and none may be missed."""
    folder = saved[entry.name]
    files = {path.stem: path for path in folder.glob("*.py")}
    for path in files.values():
        nodes = [x for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.ImportFrom) and x.level]
        assert all(node.level == 1 for node in nodes)
        assert {node.module for node in nodes} == set(get_relative_imports(path)) <= set(files)
    needed, waiting = (
        set(),
        {x.split(".")[0] for x in json.loads((folder / "config.json").read_text())["auto_map"].values()},
    )
    while waiting:
        needed |= waiting
        waiting = {x for name in waiting for x in get_relative_imports(files[name])} - needed
    assert needed == set(files), "only what is needed is copied"


def test_the_registered_layer_carries_the_version():
    assert RECURRENT_LAYER_TYPE.endswith(version("noria").replace(".", "_"))


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_all_heads_of_an_architecture_share_one_file(row):
    """Whichever head is loaded and saved again takes the code of the others along."""
    assert len({model.__module__ for model in row.models.values()}) == 1


def test_a_package_cannot_be_flattened():
    with pytest.raises(ValueError, match="modeling is not a module"):
        flatten("noria.modeling")


def test_write_code_adds_to_what_save_pretrained_wrote(tmp_path):
    entry = CAUSAL[0]
    model = entry.model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    before["auto_map"] = {"AutoTokenizer": ["mine.Tokenizer", None]}
    (tmp_path / "config.json").write_text(json.dumps(before))
    written = hub.write_code(model, tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert set(written) == set(tmp_path.glob("*.py"))
    assert after["auto_map"].pop("AutoTokenizer") == ["mine.Tokenizer", None]
    assert len(after.pop("auto_map")) == 1 + len(entry.models)
    del before["auto_map"]
    assert after == before
    assert not hasattr(model.config, "auto_map"), "the user's own configuration is left alone"
    assert not list(tmp_path.glob(".*")), "nothing half-written stays"


def test_write_code_of_a_configuration_makes_the_folder(tmp_path):
    hub.write_code(CAUSAL[0].config(), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["vocab_size"] == CAUSAL[0].config().vocab_size


def test_write_code_refuses_what_is_not_its_own(tmp_path):
    with pytest.raises(ValueError, match="model type 'gpt2' is not an architecture of noria"):
        hub.write_code(huggingface_gpt2(), tmp_path)
    hub.write_code(CAUSAL[0].config(), tmp_path)
    stranger = next(x for x in CAUSAL if x.config_class is not CAUSAL[0].config_class)
    with pytest.raises(ValueError, match="holds a model of type"):
        hub.write_code(stranger.config(), tmp_path)


def huggingface_gpt2():
    from transformers import GPT2Config

    return GPT2Config(n_layer=1)


def test_save_takes_the_pictures_of_the_card_along(tmp_path):
    config = NoriaRoFormerConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, position_encoding="alibi")
    folder = hub.save(NoriaRoFormerModel(config), tmp_path / "model")
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert shown
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in shown)


def test_save_takes_the_tokenizer_along(tmp_path):
    folder = hub.save(CAUSAL[0].model(dtype=torch.float32), tmp_path / "model", character_tokenizer("abc"))
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["a", "b", "c"]) == [4, 5, 6]
    assert {"README.md", "config.json", "model.safetensors", "modeling_backbone.py"} <= {
        x.name for x in folder.iterdir()
    }


def test_save_writes_all_or_nothing(tmp_path, monkeypatch):
    model = CAUSAL[0].model(dtype=torch.float32)
    monkeypatch.setattr(hub, "card", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "diary.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        hub.save(model, tmp_path / "taken")


def test_the_code_says_where_it_comes_from(saved):
    for path in saved[ENTRIES[0].name].glob("*.py"):
        first = path.read_text().splitlines()[0]
        assert re.fullmatch(rf"# Part of noria {re.escape(version('noria'))}, under the Apache License 2\.0\.", first)
