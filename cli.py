"""The `noria` command: reads its arguments and hands them on; whatever is slow to import waits until it is needed."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .conversion.command import register as register_conversion
from .training.quickstart_image_settings import ImageSettings
from .training.settings import Settings


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help tells more\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command; returns 0, 2 after bad input (one line on stderr), or 128 + n when signal n stopped it."""
    options = parser().parse_args(arguments)
    try:
        return options.handler(options) or 0
    except KeyboardInterrupt as stop:
        print("noria: interrupted", file=sys.stderr)
        return 128 + getattr(stop, "signum", 2)
    except BrokenPipeError:
        # The reader is gone; a stdout that cannot be flushed would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not is_about_input(error):
            raise
        print(f"noria {options.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def is_about_input(error: Exception) -> bool:
    """Whether the user can mend the error; any other is a bug, and its traceback is wanted."""
    if isinstance(error, ValueError | OSError | ImportError):
        return True
    from safetensors import SafetensorError

    return isinstance(error, SafetensorError)


def parser() -> Parser:
    """The whole command line."""
    top = Parser(prog="noria", description="Rotary, linear-attention and state-space models for Transformers.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    add_quickstart(commands)
    add_quickstart_image(commands)
    add_list(commands)
    add_generate(commands)
    register_conversion(commands)
    add_push(commands)
    add_card(commands)
    return top


def command(commands: Any, name: str, handler: Any, text: str) -> Parser:
    """Adds one sub-command with its handler and its description."""
    added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    added.set_defaults(handler=handler)
    return added


def add_quickstart(commands: Any) -> None:
    text = "train a small model on the embedded Chinese classics, save it, and let it write four poems"
    added = command(commands, "quickstart", run_quickstart, text)
    setting = settings_of(added, Settings())
    setting("--architecture", str, "a causal model that `noria list` shows, or a model type of transformers")
    add_run(added, "noria-quickstart")
    setting("--seconds", float, "how long to train")
    setting("--steps", int, "train for so many steps instead, which repeats exactly")
    setting("--seed", int, "of the weights, the order of the text and the poems")
    setting("--hidden-size", int, "width of the model")
    setting("--layers", int, "its number of layers")
    setting("--length", int, "tokens in a row of text")
    setting("--batch", int, "rows in a step")
    setting("--learning-rate", float, "peak learning rate of AdamW")
    setting("--precision", str, "float32 or bfloat16, of the matrix products in training")


def add_quickstart_image(commands: Any) -> None:
    text = "train a small VQGAN on the embedded emoji and a prior on its codes, save both, and draw new ones"
    added = command(commands, "quickstart-image", run_quickstart_image, text)
    setting = settings_of(added, ImageSettings())
    setting("--prior", str, "a causal model that `noria list` shows, or a model type of transformers")
    add_run(added, "noria-quickstart-image")
    setting("--seconds", float, "how long to train both stages together")
    setting("--steps", int, "train each stage for so many steps instead, which repeats exactly")
    setting("--seed", int, "of the weights, the order of the pictures and the new ones")
    setting("--codes", int, "size of the codebook")
    setting("--hidden-size", int, "width of the VQGAN at full resolution")
    setting("--batch", int, "pictures in a step of the first stage")
    setting("--learning-rate", float, "peak learning rate of the first stage")
    setting("--prior-hidden-size", int, "width of the prior")
    setting("--prior-layers", int, "its number of layers")
    setting("--prior-batch", int, "pictures in a step of the second stage")
    setting("--prior-learning-rate", float, "peak learning rate of the second stage")


def settings_of(added: Parser, default: Any) -> Callable[[str, type, str], None]:
    """What adds a flag for a field of `default`; only flags that are given enter the options."""

    def setting(flag: str, kind: type, text: str) -> None:
        value = getattr(default, flag[2:].replace("-", "_"))
        unset = argparse.SUPPRESS
        added.add_argument(flag, type=kind, default=unset, metavar=kind.__name__.upper(), help=f"{text} ({value})")

    return setting


def add_run(added: Parser, output: str) -> None:
    """The flags of a training run that are no settings."""
    added.add_argument("--output", type=Path, default=Path(output), metavar="FOLDER", help=f"where to ({output})")
    added.add_argument("--resume", action="store_true", help="go on with the interrupted run in the output folder")
    added.add_argument("--threads", type=int, metavar="INT", help="CPU threads (OMP_NUM_THREADS, or up to 8)")


def add_list(commands: Any) -> None:
    command(commands, "list", run_list, "show every architecture with its model type, heads and paper")


def add_generate(commands: Any) -> None:
    added = command(commands, "generate", run_generate, "let a causal language model continue a prompt")
    added.add_argument("model", metavar="MODEL", help="a folder or a Hub id")
    added.add_argument("--prompt", required=True, help="the beginning of the text; `-` reads it from standard input")
    added.add_argument("--max-new-tokens", type=int, metavar="INT", help="the model's own setting, or 100")
    added.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    added.add_argument("--temperature", type=float, metavar="FLOAT")
    added.add_argument("--top-k", type=int, metavar="INT")
    added.add_argument("--top-p", type=float, metavar="FLOAT")
    added.add_argument("--seed", type=int, metavar="INT", help="the same seed writes the same text")
    added.add_argument("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    added.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (auto)")
    added.add_argument("--threads", type=int, metavar="INT", help="CPU threads")
    added.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")


def add_push(commands: Any) -> None:
    added = command(commands, "push", run_push, "upload a saved model to the Hub as code that needs no noria")
    added.add_argument("folder", type=Path, metavar="FOLDER", help="what save_pretrained or noria convert wrote")
    added.add_argument("repo", metavar="REPO", help="the Hub repository, user/name; it is made where it is missing")
    added.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    added.add_argument("--revision", metavar="BRANCH", help="push to this branch; it is made where it is missing")
    added.add_argument("--message", metavar="TEXT", help="the commit's title")
    added.add_argument("--no-code", action="store_true", help="upload no code; loading then needs noria")
    added.add_argument("--create-pr", action="store_true", help="propose the commit instead of making it")


def add_card(commands: Any) -> None:
    added = command(commands, "card", run_card, "print the model card of a saved model or of an architecture")
    added.add_argument(
        "model", metavar="MODEL", help="a folder, a Hub id, an architecture or a variant, as roformer-sim"
    )


def run_quickstart(options: argparse.Namespace) -> None:
    calm_openmp()
    from .training.quickstart import quickstart

    quickstart(options.output, given(options, Settings), **run_options(options))


def run_quickstart_image(options: argparse.Namespace) -> None:
    calm_openmp()
    from .training.quickstart_image import quickstart_image

    quickstart_image(options.output, given(options, ImageSettings), **run_options(options))


def given(options: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The options that are fields of the dataclass `kind`."""
    return {name: value for name, value in vars(options).items() if name in kind.__dataclass_fields__}


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options that `add_run` adds, but for the output."""
    return {"resume": options.resume, "threads": positive("--threads", options.threads)}


def run_list(options: argparse.Namespace) -> None:
    from .registry import ARCHITECTURES

    rows = [("ARCHITECTURE", "MODEL TYPE", "HEADS", "PAPER")]
    for model_type, row in sorted(ARCHITECTURES.items()):
        about = (sys.modules[row.config_class.__module__].__doc__ or "").partition("\n")[0]
        rows.append((row.name, model_type, ", ".join(row.models), about.partition(": ")[2].rstrip(".")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def run_generate(options: argparse.Namespace) -> None:
    positive("--threads", options.threads)
    positive("--max-new-tokens", options.max_new_tokens)
    given = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "max_new_tokens")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.greedy and given.keys() & {"temperature", "top_k", "top_p"}:
        raise ValueError("--greedy takes the likeliest token, so --temperature, --top-k and --top-p have no meaning")
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    from .generation import Writer

    writer = Writer(
        options.model,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        trust_remote_code=options.trust_remote_code,
    )
    writer.stream(prompt, seed=options.seed, do_sample=not options.greedy, **given)


def run_push(options: argparse.Namespace) -> None:
    from .hub import push

    address = push(
        options.folder,
        options.repo,
        private=options.private,
        revision=options.revision,
        commit_message=options.message,
        code=not options.no_code,
        create_pr=options.create_pr,
    )
    print(address)


def run_card(options: argparse.Namespace) -> None:
    from .hub import card

    print(card(options.model))


def positive(flag: str, value: int | None) -> int | None:
    """The value of a flag that may be left out; raises ValueError below 1."""
    if value is not None and value < 1:
        raise ValueError(f"{flag} must be at least 1, got {value}")
    return value


def calm_openmp() -> None:
    """Starts the command anew with waiting OpenMP threads soon asleep, unless the environment says otherwise.

    By default they spin, and on a core that is also wanted by others training becomes many times slower. Asleep at
    once they wake too late for the short products of a small model. A spin of microseconds serves both. OpenMP reads
    the variables when it is loaded, with torch.
    """
    if "OMP_WAIT_POLICY" in os.environ or os.name == "nt":
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "torch" in sys.modules and Path(sys.argv[0]).name in ("noria", "cli.py"):
        os.execv(sys.executable, [sys.executable, "-m", "noria.cli", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
