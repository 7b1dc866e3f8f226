"""`noria quickstart`: from an embedded text to a trained, saved and reloaded language model in about two minutes."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from .corpus import prompt
from .folder import publish, staging
from .interruption import Interruption
from .measure import cache_bytes, write
from .report import History, loading, losses, poems, sizes
from .run import Run, prepare
from .settings import checkpoint_of, plan

POEMS = ("唐诗", "宋词", "诗经", "元曲")


def quickstart(
    output: Path,
    given: dict[str, Any],
    *,
    resume: bool = False,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Trains, saves to `output`, reloads and shows a model; `given` holds the Settings that the user named.

    Stopped by Ctrl-C or SIGTERM while it trains, it saves the model with a checkpoint, says how to go on, and raises
    `Stopped`; with `resume` it goes on from there. Raises ValueError for bad settings and for a folder that must not
    be overwritten, RuntimeError if the reloaded model writes something else than the trained one.
    """
    output = Path(os.path.abspath(output.expanduser()))
    settings, record = plan(output, given, resume)
    be_quiet(threads)
    with Interruption() as interruption, staging(output) as folder:
        run = prepare(settings, History(**record["history"]) if record else None)
        say(opening(run))
        interruption.deferred = True
        run.fit(folder, checkpoint_of(output) if resume else None, lambda: interruption.requested)
        say(losses(run.history))
        if not run.save(folder):
            say("no chart was drawn, since matplotlib is not installed (pip install 'noria[viz]')")
        publish(folder, output)
        interruption.deferred = False
        if not run.finished:
            say(f"\nstopped after {run.budget.step} steps; {shown(output)} holds the model so far. To go on:")
            say(f"    noria quickstart --resume --output {shlex.quote(shown(output))}")
        interruption.check()
        show(run, output, say)


def be_quiet(threads: int | None) -> None:
    """Gives this process so many threads, by default `default_threads()`, and leaves the talking to the command."""
    torch.set_num_threads(threads or default_threads())
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def default_threads() -> int:
    """OMP_NUM_THREADS, or else all cores that this process may use, up to 8: a small model gains nothing from more."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def opening(run: Run) -> str:
    """What is about to be trained on what, and where it starts from."""
    settings, history = run.settings, run.history
    parameters = sum(p.numel() for p in run.model.parameters()) / 1e6
    begin = f"going on after {history.steps} steps, {history.seconds:.0f} s of training\n" if history.steps else ""
    return (
        f"{settings.architecture}: {settings.layers} layers, {settings.hidden_size} wide, "
        f"{parameters:.2f} M parameters; {settings.precision}, {torch.get_num_threads()} threads\n"
        f"text: {len(run.train)} records to train on, {len(run.held_out)} held out; "
        f"{len(run.tokenizer)} tokens in the vocabulary\n{begin}{losses(history)}"
    )


def show(run: Run, output: Path, say: Callable[[str], None]) -> None:
    """Poems from the trained model and again from the saved one, speeds, sizes, and how to load the result."""
    prompts = [prompt(genre) for genre in POEMS]
    samples = write(run.model, run.tokenizer, prompts, run.settings.seed)
    say(f"\n{poems(samples)}\n")
    loaded = AutoModelForCausalLM.from_pretrained(output)
    again = write(loaded, AutoTokenizer.from_pretrained(output), prompts, run.settings.seed)
    if [s.text for s in again] != [s.text for s in samples]:
        raise RuntimeError(f"the model loaded from {output} does not write what the trained one wrote")
    say(f"loaded again from {shown(output)}: the same seeds write the same four poems\n")
    say(f"training  {run.history.tokens_per_second:8,.0f} tokens/s")
    decoding = sum(s.tokens for s in again) / sum(s.seconds for s in again)
    say(f"decoding  {decoding:8,.0f} tokens/s, one text at a time")
    say(sizes(cache_bytes(loaded, 16), cache_bytes(loaded, 4096)))
    say(f"files     {', '.join(sorted(path.name for path in output.iterdir()))}")
    say(f"\nto load it:\n\n{loading(shown(output))}\n")
    say(f"to let it write: noria generate {shlex.quote(shown(output))} --prompt {POEMS[0]}")


def shown(output: Path) -> str:
    """The folder as the user would type it from where he is."""
    return str(output.relative_to(Path.cwd())) if output.is_relative_to(Path.cwd()) else str(output)
