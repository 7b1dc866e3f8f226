"""What pip builds and installs: every folder of code, nothing of the tests, and a package that works elsewhere."""

import os
import re
import shutil
import site
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

# One worker runs them all: each would build its own wheel otherwise.
pytestmark = pytest.mark.xdist_group("packaging")

ROOT = Path(__file__).parents[1]
LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".venv*", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "build", "dist", "noria-quickstart"
)
NOT_PACKAGED = {"tests", "benchmarks", "examples", "build", "dist"}


def packages_on_disk() -> set[str]:
    inner = (path.parent.relative_to(ROOT).parts for path in ROOT.rglob("__init__.py"))
    return {".".join(("noria", *p)) for p in inner if not set(p[:1]) & NOT_PACKAGED and not any("." in x for x in p)}


def listed_packages() -> set[str]:
    block = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    return set(re.findall(r'"([\w.]+)"', block[1]))


def run(*command, timeout: int = 300, **options) -> str:
    """The standard output of a command; its standard error is the message where it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout, **options)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_folder_of_code_is_packaged():
    assert listed_packages() == packages_on_disk()


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in ROOT.rglob("*.py")}
    inner = (folder for folder in folders if folder != ROOT)
    ours = {f for f in inner if not any(p.startswith(".") or p in NOT_PACKAGED for p in f.relative_to(ROOT).parts)}
    assert {folder for folder in ours if not (folder / "__init__.py").exists()} == set()


def test_the_tests_are_no_package_and_the_root_has_no_conftest():
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not (ROOT / "conftest.py").exists()


IMPORT_ALL = """
import importlib, pkgutil, noria
for found in pkgutil.walk_packages(noria.__path__, "noria."):
    if found.name.split(".")[1] not in {"tests", "benchmarks", "examples"} and not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""


def copies_of_each_file() -> dict[str, list[str]]:
    """The names under which each file of the package is loaded in this process."""
    names = {}
    for name, module in list(sys.modules.items()):
        file = str(getattr(module, "__file__", None) or "")
        if file.startswith(str(ROOT) + os.sep) and not {"tests", ".venv", ".venv-test"} & set(Path(file).parts):
            names.setdefault(file, []).append(name)
    return names


def test_each_module_is_imported_once():
    """pytest may import the root a second time, under its folder's name: two copies of every class."""
    import noria  # noqa: F401

    twice = {file: names for file, names in copies_of_each_file().items() if len(names) > 1}
    assert not twice
    assert all(name.split(".")[0] == "noria" for names in copies_of_each_file().values() for name in names)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The sdist, and the wheel built from it, made from a copy of the checkout so that nothing is left in it."""
    pytest.importorskip("build", reason="the dev extra is not installed")
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "checkout", ignore=LEFT_BEHIND)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "checkout", cwd=folder)
    return {"wheel": next(folder.glob("*.whl")), "sdist": next(folder.glob("*.tar.gz"))}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    code = {n for n in names if n.endswith(".py")}
    folders = {".".join(Path(n).parent.parts) for n in code}
    assert folders == listed_packages()
    assert not [n for n in names if set(Path(n).parts) & {"tests", "benchmarks", "examples", "golden"}]
    beside = [path for pattern in ("data/**/*", "model_cards/*.md", "py.typed") for path in ROOT.glob(pattern)]
    files = [p for p in beside if p.is_file() and p.suffix != ".pyc"]
    assert not [p for p in files if f"noria/{p.relative_to(ROOT).as_posix()}" not in names]


def test_the_sdist_holds_what_the_tests_need(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    asked = {path for folder in ("tests", "data") for path in (ROOT / folder).rglob("*") if path.is_file()}
    asked |= {ROOT / name for name in ("Makefile", "constraints.txt", "LICENSE", "CONTRIBUTING.md", ".ci/run")}
    asked = {p for p in asked if "__pycache__" not in p.parts}
    assert not sorted(n for p in asked if (n := p.relative_to(ROOT).as_posix()) not in names)


@pytest.fixture(scope="module")
def elsewhere(built, tmp_path_factory) -> Path:
    """The Python of a clean environment that holds the wheel, and sees this one's torch and transformers."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built["wheel"])
    # A .pth line adds the folder but runs none of the .pth files in it, so an editable noria there stays unseen.
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    inner = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(inner) / "libraries.pth").write_text("\n".join(sorted(here)) + "\n", encoding="utf-8")
    return python


GENERATE = """
import sys, torch, noria
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
assert noria.__file__.startswith(sys.prefix), noria.__file__
letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
core = Tokenizer(models.WordLevel(letters, unk_token="a"))
core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
torch.manual_seed(0)
config = AutoConfig.for_model("noria_retnet", vocab_size=26, hidden_size=32, num_hidden_layers=2)
model = AutoModelForCausalLM.from_config(config).eval()
prompt = tokenizer("noria", return_tensors="pt", return_token_type_ids=False)
out = model.generate(**prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
print("".join(tokenizer.convert_ids_to_tokens(out[0])))
"""


def test_the_installed_wheel_generates_text(elsewhere, tmp_path):
    text = run(elsewhere, "-I", "-c", GENERATE, cwd=tmp_path).strip()
    assert re.fullmatch(r"noria[a-z]{8}", text)


def test_the_installed_command_answers(elsewhere, tmp_path):
    assert "noria" in run(elsewhere.with_name("noria"), "--help", cwd=tmp_path)


def test_the_installed_wheel_has_every_module(elsewhere, tmp_path):
    run(elsewhere, "-I", "-c", IMPORT_ALL, cwd=tmp_path)


def cpu_seconds(statement: str, folder: Path) -> float:
    code = f"import time; start = time.process_time(); {statement}; print(time.process_time() - start)"
    return float(run(sys.executable, "-c", code, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}))


def test_importing_noria_is_cheap(tmp_path):
    """Below 1.5 times the import of transformers' PreTrainedModel: CPU seconds, taken in turn, medians compared."""
    pairs = [
        (cpu_seconds("import noria", tmp_path), cpu_seconds("from transformers import PreTrainedModel", tmp_path))
        for _ in range(3)
    ]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    assert ours < 1.5 * theirs, f"import noria takes {ours:.2f} s of CPU, transformers' PreTrainedModel {theirs:.2f} s"
