"""Candidates side by side: run in turn in one process, medians, ratios to one of them, and the machine beside it all.

    arguments = start("attention", __doc__)
    times = compare({"softmax": run_softmax, "linear": run_linear}, seconds=5)
    publish("attention", arguments, table(["L", "ratio"], rows))

A load of other programs shifts all candidates of a round alike, so ratios hold where milliseconds do not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

RESULTS = Path(__file__).with_name("RESULTS.md")
_clock = time.perf_counter
# Waiting OpenMP threads that spin slow a busy machine down many times over.
PINNED = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


class Times(NamedTuple):
    """Seconds of one candidate, one number for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        """Milliseconds as `median [min max]`."""
        return f"{digits(self.median)} [{digits(min(self.seconds))} {digits(max(self.seconds))}]"


def digits(seconds: float) -> str:
    """Milliseconds with three digits that count."""
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def start(question: str, text: str, extra: Callable[[argparse.ArgumentParser], None] | None = None):
    """Read the options that all questions share, pin the threads, and say which machine this is.

    The process replaces itself once where OpenMP has been started with other settings. Returns the options.
    """
    parser = argparse.ArgumentParser(prog=f"python benchmarks/{question}.py", description=text.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds: shows that it runs")
    parser.add_argument("--write", action="store_true", help=f"replace this question's section of {RESULTS.name}")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, where others keep the machine busy")
    parser.add_argument("--threads", type=int, default=1, help="threads of every candidate (default: 1)")
    if extra is not None:
        extra(parser)
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, not {arguments.threads}")
    if arguments.quick and arguments.write:
        parser.error("--quick measures nothing worth keeping: leave out --write")
    if arguments.cpu_time and (arguments.threads > 1 or torch.cuda.is_available()):
        parser.error("--cpu-time counts one thread of the processor: use --threads 1 and no CUDA device")
    pin(arguments.threads)
    use_processor_time(arguments.cpu_time)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    print(f"{machine()}\n", flush=True)
    return arguments


def pin(threads: int) -> None:
    """Use `threads` threads; OpenMP reads its settings when torch is loaded, so they are set before that."""
    wanted = PINNED | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    torch.set_num_threads(threads)


def use_processor_time(wanted: bool) -> None:
    """Let `now()` count the time that this process was run, rather than the time that passed."""
    global _clock
    _clock = time.process_time if wanted else time.perf_counter


def now() -> float:
    """Seconds since some moment, by the clock that was chosen."""
    return _clock()


def machine() -> str:
    """The processor, the versions and the load, in one line."""
    found = re.search(r"model name\s*:\s*(.+)", read("/proc/cpuinfo"))
    family = re.search(r"cpu family\s*:\s*(\d+)", read("/proc/cpuinfo"))
    name = f"{found[1]} (family {family[1]})" if found and family else platform.processor() or platform.machine()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{name}, {os.cpu_count()} cores{device}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {torch.get_num_threads()} thread(s){load}"
    )


def read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def compare(
    candidates: Mapping[str, Callable[[], object]],
    seconds: float = 5.0,
    least: int = 3,
    most: int = 30,
    warm: bool = True,
) -> dict[str, Times]:
    """Run the candidates in turn, A B C A B C, until `seconds` have passed; at least `least` rounds, at most `most`.

    `warm` runs each once before, unmeasured. On CUDA every run is waited for.
    """
    if warm:
        for run in candidates.values():
            run()
    found: dict[str, list[float]] = {name: [] for name in candidates}
    begin = time.perf_counter()
    rounds = 0
    while rounds < least or (rounds < most and time.perf_counter() - begin < seconds):
        for name, run in candidates.items():
            found[name].append(clock(run))
        rounds += 1
    return {name: Times(tuple(values)) for name, values in found.items()}


def clock(run: Callable[[], object]) -> float:
    synchronize()
    begin = now()
    run()
    synchronize()
    return now() - begin


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(times: Times, baseline: Times) -> str:
    """How many times the baseline's time, by medians."""
    return f"{times.median / baseline.median:.3f}"


def error(found: Tensor, truth: Tensor) -> float:
    """The largest difference, relative to the truth's largest value."""
    truth = truth.double()
    return ((found.double() - truth).abs().amax() / truth.abs().amax()).item()


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def progress(text: str) -> None:
    """A line for who waits; not part of the result."""
    print(text, file=sys.stderr, flush=True)


def publish(question: str, arguments: argparse.Namespace, text: str) -> None:
    """Print a question's result, and with --write put it into its section of RESULTS.md."""
    print(text)
    if not arguments.write:
        return
    options = shlex.join(argument for argument in sys.argv[1:])
    begin, end = f"<!-- {question}:begin -->", f"<!-- {question}:end -->"
    title = (sys.modules["__main__"].__doc__ or question).splitlines()[0].rstrip(".")
    source = f"What exactly is measured stands at the top of [{question}.py]({question}.py)."
    command = f"    python benchmarks/{question}.py {options}"
    body = "\n\n".join([f"{begin}\n## {title}", f"{source}\n{machine()}", command, f"{text}\n{end}"])
    page = RESULTS.read_text(encoding="utf-8")
    if begin not in page:
        page = f"{page.rstrip()}\n\n{begin}\n{end}\n"
    section = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    RESULTS.write_text(section.sub(lambda _: body, page), encoding="utf-8")
    progress(f"written to {RESULTS.name}")


def in_fresh_process(arguments: argparse.Namespace, case: Mapping[str, Any]) -> dict[str, Any]:
    """What this script answers to `--case` in a process of its own: the last line it prints, as JSON."""
    command = [sys.executable, sys.argv[0], "--threads", str(arguments.threads), "--case", json.dumps(case)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def peak_growth(work: Callable[[], object]) -> tuple[float, float]:
    """MiB resident before `work`, and how much more at its peak. Needs Linux: its kernel can forget an older peak."""
    before = resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        work()
        return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    work()
    return before, resident("VmHWM") - before


def resident(field: str) -> float:
    found = re.search(rf"{field}:\s*(\d+) kB", read("/proc/self/status"))
    return int(found[1]) / 1024 if found else float("nan")
