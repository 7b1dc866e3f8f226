"""`noria convert` and `noria export` for the command line."""

import argparse
import json
import logging
import sys
from typing import Any

from .convert import convert
from .export import export
from .formats import FORMATS


def register(subparsers: Any) -> None:
    """Adds both commands to the subparsers of an argparse parser; `handler` of the parsed arguments runs them."""
    converter = add(subparsers, "convert", "turn an original checkpoint into a Transformers folder", run_convert)
    converter.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the upstream's constructor that the checkpoint lacks, or a field of the noria "
        "configuration; the value is read as JSON, else as text (may be repeated)",
    )
    add(subparsers, "export", "turn a converted folder into the original's checkpoint again", run_export)


def add(subparsers: Any, name: str, summary: str, handler: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("format", metavar="FORMAT", help=f"the upstream project: {', '.join(sorted(FORMATS))}")
    parser.add_argument("source", metavar="SOURCE", help="a file, a folder, a zip archive or a Hub id")
    parser.add_argument("target", metavar="TARGET", help="the folder to write; it must be new or empty")
    parser.set_defaults(handler=handler)
    return parser


def run_convert(arguments: argparse.Namespace) -> int:
    """Exit status 0, or 2 after one line about what is wrong."""
    try:
        config = dict(map(key_value, arguments.config))
        show_progress()
        print(convert(arguments.format, arguments.source, arguments.target, config))
    except (ValueError, OSError) as error:
        return complain("convert", error)
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Exit status 0, or 2 after one line about what is wrong."""
    try:
        show_progress()
        print(export(arguments.format, arguments.source, arguments.target))
    except (ValueError, OSError) as error:
        return complain("export", error)
    return 0


def show_progress() -> None:
    """What the conversion logs goes to stderr."""
    logger = logging.getLogger(__package__)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)


def key_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"--config wants key=value, not {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def complain(command: str, error: Exception) -> int:
    print(f"noria {command}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
