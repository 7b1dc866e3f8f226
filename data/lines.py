"""How the embedded samples are read: gzipped files of one JSON object a line, from a checkout or a wheel alike."""

import gzip
import json
from importlib.resources import files
from typing import Any


def json_lines(name: str) -> list[dict[str, Any]]:
    """The objects of `<name>.jsonl.gz` in the file's order; FileNotFoundError where no such sample is shipped."""
    compressed = files(__package__).joinpath(f"{name}.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(compressed).decode("utf-8").splitlines()]
