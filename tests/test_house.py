"""The rules of the house: who may import whom, what a file may hold, what the documents must list."""

import ast
import re
import sys
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = {"tests", "benchmarks", "examples"}
GENERATED = {"build", "dist", "noria-quickstart"}


def kept(path: Path) -> bool:
    """Whether a path belongs to the project rather than to an environment, a build or a cache."""
    parts = path.relative_to(ROOT).parts
    hidden = any(part.startswith(".") and part != ".ci" for part in parts[:-1])
    return not hidden and not GENERATED & set(parts) and not any(part.endswith(".egg-info") for part in parts)


EVERY_PYTHON_FILE = sorted(path for path in ROOT.rglob("*.py") if kept(path))
PACKAGE = [path for path in EVERY_PYTHON_FILE if path.relative_to(ROOT).parts[0] not in OUTSIDE]
MODEL_CODE = [path for path in PACKAGE if path.relative_to(ROOT).parts[0] in {"modeling", "configuration"}]
TEXTS = sorted(
    path
    for path in chain(EVERY_PYTHON_FILE, *(ROOT.rglob(f"*{end}") for end in (".md", ".toml", ".txt", ".yaml", ".in")))
    if kept(path) and path != Path(__file__) and "licences" not in path.parts
)
SCRIPTS = [path for path in (ROOT / "Makefile", ROOT / ".ci" / "run") if path.exists()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def of(paths):
    """Parametrise over files, with readable ids; the rule holds for each of them on its own."""
    return pytest.mark.parametrize("path", paths, ids=name_of)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    """The dotted name below the package: `modeling.ops.linear`, and `` for the face."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def absolute_imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports by an absolute name."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def relative_imports(path: Path) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.level]


def target_of(path: Path, node: ast.ImportFrom) -> str:
    package = path.relative_to(ROOT).parent.parts
    return ".".join((*package[: len(package) - node.level + 1], *((node.module or "").split("."))))


def is_mixer(path: Path) -> bool:
    """Whether a file defines a token mixer: a class whose forward takes a context and a state."""
    methods = (n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef) and n.name == "forward")
    return any({"context", "state"} <= {argument.arg for argument in method.args.args} for method in methods)


MIXERS = [path for path in PACKAGE if path.parent == ROOT / "modeling" / "mixers" and is_mixer(path)]
STANDARD_LIBRARY = set(sys.stdlib_module_names)
MODEL_LIBRARIES = {"torch", "transformers", "huggingface_hub", "safetensors"}
KERNELS = {"fla", "flash_attn", "mamba_ssm", "causal_conv1d", "triton"}
CONFIGURATION_BASES = {"decoder", "encoder", "selective"}
ARCHITECTURES = {path.stem for path in (ROOT / "configuration").glob("*.py")} - {"__init__"} - CONFIGURATION_BASES


@of(PACKAGE)
def test_the_package_imports_itself_relatively(path):
    assert "noria" not in absolute_imports(path), "write `from ..state import X`"
    assert all(node.module for node in relative_imports(path)), "write `from .module import name`"


@of(MODEL_CODE)
def test_model_code_imports_what_flat_hub_files_can_have(path):
    allowed = STANDARD_LIBRARY | MODEL_LIBRARIES
    if path == ROOT / "modeling" / "ops" / "dispatch.py":
        allowed |= KERNELS
    assert absolute_imports(path) <= allowed
    assert all(node.col_offset == 0 for node in relative_imports(path)), "relative imports begin at column 0"


@of(
    [
        path
        for path in PACKAGE
        if path.relative_to(ROOT).parts[:2] in {("modeling", x) for x in ("image", "mixers", "ops", "position")}
    ]
)
def test_parts_of_models_know_no_transformers(path):
    assert absolute_imports(path) <= STANDARD_LIBRARY | {"torch"} | KERNELS


def rank(module: str) -> int:
    """How high a module stands; a file may import what stands as high as itself, or lower."""
    folder, _, rest = module.partition(".")
    if folder == "configuration":
        return 0
    if folder != "modeling":
        return {"": 9, "cli": 8}.get(folder, 7)
    if rest.startswith(("ops.", "position.")) or rest in {"state", "norm", "activation"}:
        return 1
    if rest.startswith(("mixers.", "image.")) or rest == "feedforward":
        return 2
    return 3 if rest == "block" else 5 if rest in ARCHITECTURES else 4


@of(PACKAGE)
def test_imports_point_down(path):
    module = module_of(path)
    up = [target for target in (target_of(path, n) for n in relative_imports(path)) if rank(target) > rank(module)]
    assert not up, f"{module} imports {up}"


@of([path for path in PACKAGE if path.parent == ROOT / "configuration"])
def test_configurations_import_only_their_bases(path):
    targets = {target_of(path, node).removeprefix("configuration.") for node in relative_imports(path)}
    # A second stage has the first in its configuration, and is called after it.
    assert {target for target in targets if not path.stem.startswith(f"{target}_")} <= CONFIGURATION_BASES


def test_no_import_runs_in_a_circle():
    graph = {module_of(p): {target_of(p, node) for node in relative_imports(p)} - {""} for p in PACKAGE}
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"circles among {sorted(graph)}"


@of([p for p in MODEL_CODE if p.parent == ROOT / "modeling" and p.stem not in ARCHITECTURES])
def test_shared_modules_name_no_architecture(path):
    nodes = list(ast.walk(tree(path)))
    words = {node.id for node in nodes if isinstance(node, ast.Name)}
    words |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    words |= {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.alias)}
    spelled = {name.replace("_", "") for name in ARCHITECTURES if len(name) > 4}  # `gan` is a part of other words
    assert not [word for word in words if any(name in word.lower().replace("_", "") for name in spelled)]
    compared = [part for node in nodes if isinstance(node, ast.Compare) for part in (node.left, *node.comparators)]
    assert not [part for part in compared if isinstance(part, ast.Attribute) and part.attr == "model_type"]


@of([path for path in PACKAGE if path.name == "__init__.py" and path.parent != ROOT])
def test_inner_init_files_are_empty(path):
    assert path.read_bytes() == b""


@of(PACKAGE)
def test_files_and_functions_are_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 300, f"{lines} lines; the limit is 300"
    functions = (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = {node.name: size for node in functions if (size := node.end_lineno - node.lineno + 1) > 40}
    assert not long, f"functions over 40 lines: {long}"


@of(MIXERS)
def test_mixer_files_open_with_their_source_and_equations(path):
    text = ast.get_docstring(tree(path)) or ""
    assert re.search(r"arXiv[: ]\d{4}\.\d{4,5}", text), "the docstring cites the paper as arXiv:NNNN.NNNNN"
    assert re.search(r"\w\S* = \S", text), "the docstring states the equations"


# transformers greps class names for "Attention" and then expects attention weights of the module.
SOFTMAX = {"softmax_attention.py"}


@of([path for path in MIXERS if path.name not in SOFTMAX])
def test_linear_mixers_do_not_call_themselves_attention(path):
    classes = [node.name for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    assert not [name for name in classes if "Attention" in name]


@of([path for path in PACKAGE if path.parent != ROOT])
def test_names_are_imported_not_spelled_in_strings(path):
    dotted = re.compile(r"(noria|torch|transformers|modeling|configuration)(\.[a-z_0-9]+)*\.[A-Z]\w+")
    strings = (n.value for n in ast.walk(tree(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    assert not [text for text in strings if dotted.fullmatch(text)]
    calls = {n.func.id for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not calls & {"eval", "exec", "__import__"}


@of([*TEXTS, *SCRIPTS])
def test_no_unfinished_work_and_no_foreign_places(path):
    text = path.read_text(encoding="utf-8")
    unfinished = r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b"
    registries = r"(pypi|pythonhosted|anaconda|npmjs)\.(org|com)|download\.pytorch\.org|://[\w.-]+/simple\b"
    machines = r"(?<![\w.~/])/(home|root|work|Users|opt)/\w"
    for pattern in (unfinished, registries, machines):
        assert not (found := re.search(pattern, text)), f"{found[0]!r} does not belong here"


@of(EVERY_PYTHON_FILE)
def test_comments_say_why_and_nothing_else(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^\s*#\s*[-=#*~]{4,}", text, re.MULTILINE), "no banners"
    assert not re.search(r"^# (Copyright|Licensed under|SPDX)", text, re.MULTILINE), "the licence is in LICENSE"


def test_the_table_of_the_laws_covers_every_architecture():
    table = ast.parse((ROOT / "tests" / "architectures.py").read_text(encoding="utf-8"))
    spelled = {node.id.removeprefix("Noria").lower() for node in ast.walk(table) if isinstance(node, ast.Name)}
    assert {name.replace("_", "") + "config" for name in ARCHITECTURES} <= spelled


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_has_its_files_and_its_row(name):
    assert (ROOT / "modeling" / f"{name}.py").is_file()
    assert (ROOT / "model_cards" / f"{name}.md").is_file()
    row = re.search(
        rf"^\|.*\(modeling/{name}\.py\).*\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert row, f"the README's table has no row with a link to modeling/{name}.py"
    assert f"noria_{name}" in row[0]
    assert "arxiv.org" in row[0]
