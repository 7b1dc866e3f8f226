"""`noria quickstart-image`: from embedded pictures to codes, and to new pictures, in a few minutes on a CPU."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from ..data.emoji import CATEGORIES, Emoji
from .folder import publish, staging
from .image_measures import encode, reconstruct
from .interruption import Interruption
from .picture_grid import draw_grid
from .pictures import as_pixels
from .quickstart import be_quiet, shown
from .quickstart_image_history import ImageHistory
from .quickstart_image_run import ImageRun, prepare, stack
from .quickstart_image_settings import ImageSettings
from .settings import checkpoint_of, plan

COLUMNS, PAIRS, SAMPLES = 12, 3, 10
SAMPLING = {"temperature": 0.9, "top_k": 32}


def quickstart_image(
    output: Path,
    given: dict[str, Any],
    *,
    resume: bool = False,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Trains both stages, saves them to `output`, reloads them and draws.

    given: the ImageSettings that the user named. Stopped by Ctrl-C or SIGTERM while it trains, it saves what it has
    with a checkpoint, says how to go on, and raises `Stopped`; with `resume` it goes on from there. Raises ValueError
    for bad settings and for a folder that must not be overwritten, ImportError without Pillow, RuntimeError if a
    reloaded model differs from the trained one.
    """
    output = Path(os.path.abspath(output.expanduser()))
    settings, record = plan(output, given, resume, ImageSettings)
    be_quiet(threads)
    with Interruption() as interruption, staging(output) as folder:
        history = ImageHistory.restore(record["history"]) if record else ImageHistory()
        run = prepare(settings, history, output if resume else None)
        say(opening(run))
        interruption.deferred = True
        run.fit(folder, checkpoint_of(output) if resume else None, lambda: interruption.requested, say)
        run.save(folder)
        draw_reconstructions(run, folder)
        publish(folder, output)
        interruption.deferred = False
        if not run.finished:
            stage = "second" if history.vqgan.finished else "first"
            say(f"\nstopped in the {stage} stage; {shown(output)} holds what there is so far. To go on:")
            say(f"    noria quickstart-image --resume --output {shlex.quote(shown(output))}")
        interruption.check()
        show(run, output, say)


def opening(run: ImageRun) -> str:
    """What is about to be trained on what, and where it starts from."""
    history, codes = run.history, (run.vqgan.config.image_size // run.vqgan.config.downsampling) ** 2
    parameters = sum(p.numel() for p in run.vqgan.parameters()) / 1e6
    lines = [
        f"vqgan: {run.settings.codes} codes, {codes} for a picture, {parameters:.2f} M parameters; "
        f"{torch.get_num_threads()} threads",
        f"pictures: {len(run.train)} to train on, {len(run.held_out)} held out, in {len(CATEGORIES)} categories",
    ]
    for name in ("vqgan", "prior"):
        if (stage := getattr(history, name)).steps:
            lines.append(f"{name}: {'trained in' if stage.finished else 'going on after'} {stage.effort}")
    return "\n".join(lines)


def draw_reconstructions(run: ImageRun, folder: Path) -> None:
    """Held-out pictures of all categories, each above its reconstruction, as reconstructions.png."""
    chosen = spread(run.held_out, COLUMNS * PAIRS)
    pixels, again = as_pixels(stack(chosen)), reconstruct(run.vqgan, stack(chosen))
    pairs = zip(pixels.split(COLUMNS), again.split(COLUMNS), strict=True)
    draw_grid([row for pair in pairs for row in pair], folder / "reconstructions.png")


def spread(pictures: list[Emoji], count: int) -> list[Emoji]:
    """At most `count` of the pictures, each category with its share."""
    ordered = sorted(pictures, key=lambda picture: picture.category)
    return [ordered[i * len(ordered) // count] for i in range(count)] if count < len(ordered) else ordered


def sample(prior: Any, seed: int) -> Tensor:
    """SAMPLES codes of new pictures for each category, (categories * SAMPLES h w), the i-th under `seed + i`."""
    classes = torch.arange(len(CATEGORIES)).repeat_interleave(SAMPLES)
    return prior.eval().generate_codes(classes, seed=seed, **SAMPLING)


def show(run: ImageRun, output: Path, say: Callable[[str], None]) -> None:
    """New pictures from the trained models, and again from the saved ones; what was written, and how to load it."""
    codes = sample(run.prior, run.settings.seed)
    vqgan, prior = (AutoModel.from_pretrained(output / name).eval() for name in ("vqgan", "prior"))
    pictures = stack(run.held_out)
    if not torch.equal(encode(vqgan, pictures), encode(run.vqgan, pictures)):
        raise RuntimeError(f"the first stage loaded from {output} does not find the codes that the trained one found")
    if not torch.equal(sample(prior, run.settings.seed), codes):
        raise RuntimeError(f"the prior loaded from {output} does not write the codes that the trained one wrote")
    with torch.no_grad():
        rows = prior.vqgan.decode_codes(codes).split(SAMPLES)
    draw_grid(rows, output / "samples.png", CATEGORIES)
    say("loaded again: the held-out pictures have the same codes, the same seeds write the same new ones\n")
    say(f"look at   {shown(output / 'reconstructions.png')}: held-out pictures, each above its reconstruction")
    say(f"          {shown(output / 'samples.png')}: {SAMPLES} new pictures for each category")
    say(f"\nto load it:\n\n{loading(shown(output))}")


def loading(folder: str) -> str:
    """The Python that loads what was saved."""
    return (
        "    import noria, transformers\n"
        f"    prior = transformers.AutoModel.from_pretrained({folder + '/prior'!r})\n"
        f"    pixels = prior.generate_images({list(CATEGORIES[3:5])}, seed=1, top_k=32)  # (2 3 32 32) in [-1, 1]\n"
        f"    vqgan = transformers.AutoModel.from_pretrained({folder + '/vqgan'!r})  # encode, decode_codes"
    )
