"""Modules of this package as the flat files that `trust_remote_code` loads.

    configuration/retnet.py           ->  configuration_retnet.py
    modeling/mixers/retention.py      ->  modeling_mixers_retention.py

A module's path, joined by underscores, is its file's name, and its relative imports are rewritten to match. Nothing
else changes, so the flat copy computes what the package computes.
"""

import ast
import re
from importlib.util import find_spec

RELATIVE_SOURCE = re.compile(r"\bfrom\s+\.[\w.]*")


def flat_name(module: str) -> str:
    """`noria.modeling.mixers.retention` -> `modeling_mixers_retention`."""
    return module.partition(".")[2].replace(".", "_")


def flatten(*modules: str) -> dict[str, str]:
    """The text of `modules` and of all modules of the package that they import, by file name.

    Raises ValueError where a module cannot stand alone: it imports a package instead of a module, or two modules would
    have one name.
    """
    texts: dict[str, str] = {}
    origin: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        name = f"{flat_name(module)}.py"
        if origin.setdefault(name, module) != module:
            raise ValueError(f"{module} and {origin[name]} would both become {name}: rename one of them.")
        if name not in texts:
            texts[name], imported = flatten_module(module)
            waiting += imported
    return dict(sorted(texts.items()))


def flatten_module(module: str) -> tuple[str, list[str]]:
    """The text of one module with its relative imports rewritten, and the modules that these name."""
    text = source_of(module)
    lines = text.splitlines(keepends=True)
    imported = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            if not node.module:
                raise ValueError(f"{module}, line {node.lineno}: write `from .module import name` in a flat file.")
            target = f"{module.rsplit('.', node.level)[0]}.{node.module}"
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = RELATIVE_SOURCE.sub(f"from .{flat_name(target)}", line, count=1)
            imported.append(target)
    return "".join(lines), imported


def source_of(module: str) -> str:
    """The text of a module of this package, as it was installed. Raises ValueError for packages and built-ins."""
    spec = find_spec(module)
    if spec is None or spec.submodule_search_locations is not None or not hasattr(spec.loader, "get_source"):
        raise ValueError(f"{module} is not a module whose source can be copied.")
    return spec.loader.get_source(module)
