"""The quickstart of images: both stages, their grids and measures, and that an interrupted run ends as any other."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

import noria.training.quickstart_image_run
from noria.data.emoji import CATEGORIES, emoji, split
from noria.training.image_measures import measure_first_stage, prior_loss, reconstruct, unigram_baseline
from noria.training.picture_grid import draw_grid
from noria.training.pictures import CodedPictures, ShiftedPictures, as_pixels
from noria.training.quickstart import quickstart
from noria.training.quickstart_image import quickstart_image, spread
from noria.training.quickstart_image_history import ImageHistory
from noria.training.quickstart_image_run import make_prior, prepare, stack
from noria.training.quickstart_image_settings import FIRST_STAGE, ImageSettings
from noria.training.settings import checkpoint_of, plan

Image = pytest.importorskip("PIL.Image", reason="the image extra is not installed")

SHAPE = {"codes": 16, "hidden_size": 4, "batch": 2, "prior_hidden_size": 16, "prior_layers": 1, "prior_batch": 2}


@pytest.fixture(scope="module")
def pictures():
    train, held_out = split(emoji())
    return train[:: len(train) // 24] + held_out[::20]


@pytest.fixture
def few_pictures(monkeypatch, pictures):
    """The emoji, cut down to about thirty of them."""
    monkeypatch.setattr(noria.training.quickstart_image_run, "emoji", lambda: pictures)
    torch.set_num_threads(1)


def test_pictures_are_moved_over_white():
    pictures = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    rows = ShiftedPictures(pictures, reach=1)
    assert len(rows) == 2 * 9
    places = [rows[9 + place]["pixel_values"] for place in range(9)]
    assert torch.equal(places[4], as_pixels(pictures[1]))
    assert torch.equal(places[8][:, :3, :3], as_pixels(pictures[1])[:, 1:, 1:])
    assert (places[8][:, 3] == 1).all()
    assert torch.equal(places[0][:, 1:, 1:], as_pixels(pictures[1])[:, :3, :3])
    assert torch.equal(ShiftedPictures(pictures)[1]["pixel_values"], as_pixels(pictures[1]))


def test_the_baseline_is_laplace_s_rule():
    train, held_out = torch.tensor([[0, 0], [1, 0]]), torch.tensor([[0, 2]])
    assert unigram_baseline(train, held_out, 4) == pytest.approx(-(math.log(4 / 8) + math.log(1 / 8)) / 2)
    with pytest.raises(ValueError, match="nothing to measure"):
        unigram_baseline(train, held_out[:0], 4)


def test_a_grid_holds_its_pictures(tmp_path):
    black, white = -torch.ones(1, 3, 4, 5), torch.ones(1, 3, 4, 5)
    draw_grid([torch.cat([white, 3 * black]), black], tmp_path / "grid.png", ["a", "bcd"], scale=2)
    grid = Image.open(tmp_path / "grid.png")
    left, gap = 7 * 3 + 2 * 4, 4
    assert grid.size == (left + 2 * (10 + gap), gap + 2 * (8 + gap))
    assert grid.getpixel((left + 1, gap + 1)) == (255, 255, 255)
    assert grid.getpixel((left + 10 + gap + 9, gap + 7)) == (0, 0, 0)
    assert grid.getpixel((left, 2 * gap + 8)) == (0, 0, 0)
    with pytest.raises(ValueError, match="a name for each row"):
        draw_grid([black], tmp_path / "grid.png", ["a", "b"])
    with pytest.raises(ValueError, match="pictures of one size"):
        draw_grid([black, black[..., 1:]], tmp_path / "grid.png")


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"noria\[image\]"):
        draw_grid([torch.ones(1, 3, 4, 4)], tmp_path / "grid.png")


def test_pictures_of_all_categories_are_shown(pictures):
    chosen = spread(split(emoji())[1], 12)
    assert len(chosen) == 12
    assert len({picture.category for picture in chosen}) >= 8
    assert len(spread(pictures, 100)) == len(pictures)


def test_both_stages_share_the_time():
    settings = ImageSettings(seconds=100.0)
    assert settings.budget("vqgan").seconds == 100 * FIRST_STAGE
    assert settings.budget("vqgan").seconds + settings.budget("prior").seconds == pytest.approx(100)
    assert ImageSettings(steps=7).budget("prior", elapsed=3.0).steps == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seconds": 0}, "longer than 0 seconds"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"codes": 1}, "--codes must be at least 2, got 1"),
        ({"prior_layers": 0}, "--prior-layers must be greater than 0, got 0"),
        ({"learning_rate": -1.0}, "--learning-rate must be greater than 0, got -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ImageSettings(**given)


def test_measures_are_those_of_each_picture_alone(few_pictures, pictures):
    settings = ImageSettings(**SHAPE)
    run = prepare(settings, ImageHistory())
    train, held_out = stack(run.train), stack(run.held_out)
    measures = measure_first_stage(run.vqgan, train, held_out)
    errors = (reconstruct(run.vqgan, held_out).clamp(-1, 1) - as_pixels(held_out)).square().mean((1, 2, 3))
    assert measures["psnr"] == pytest.approx((10 * (4 / errors).log10()).mean().item(), rel=1e-5)
    assert 0 < measures["codebook_usage"] <= 1
    prior = make_prior(settings, run.vqgan)
    rows = CodedPictures(torch.randint(16, (70, 8, 8)), torch.arange(70) % len(CATEGORIES))
    alone = [prior_loss(prior, CodedPictures(rows.codes[i : i + 1], rows.classes[i : i + 1])) for i in range(70)]
    assert prior_loss(prior, rows) == pytest.approx(sum(alone) / 70, rel=1e-5)


def test_a_run_ends_with_two_models_and_their_pictures(few_pictures, tmp_path):
    said, output = [], tmp_path / "run"
    quickstart_image(output, {**SHAPE, "steps": 2}, threads=1, say=said.append)
    text = "\n".join(said)
    for part in ("PSNR", "codes in use", "perplexity", "unigram baseline", "the same new ones", "import noria"):
        assert part in text
    files = {"history.json", "prior", "reconstructions.png", "run.json", "samples.png", "vqgan"}
    assert {path.name for path in output.iterdir()} == files
    history = ImageHistory.restore(json.loads((output / "history.json").read_text(encoding="utf-8")))
    assert (history.vqgan.steps, history.prior.steps, history.prior.finished) == (2, 2, True)
    assert history.losses() in text
    assert Image.open(output / "samples.png").size[1] > 10 * 32 * 3
    prior = AutoModel.from_pretrained(output / "prior")
    pixels = prior.generate_images(["Flags", "Food & Drink"], seed=1, top_k=4)
    assert pixels.shape == (2, 3, 32, 32)
    processor = AutoImageProcessor.from_pretrained(output / "vqgan")
    assert processor([Image.new("RGB", (50, 40))], return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(ValueError, match="is finished"):
        plan(output, {}, True, ImageSettings)
    with pytest.raises(ValueError, match="holds a model of vqgan, not of retnet"):
        quickstart(output, {})
    (output / "checkpoint-1").mkdir()
    (output / "run.json").write_text(
        (output / "run.json").read_text().replace('"finished": true', '"finished": false')
    )
    with pytest.raises(ValueError, match="was begun by another command: it has codes"):
        quickstart(output, {}, resume=True)


@pytest.mark.parametrize(("stage", "step"), [("vqgan", 3), ("prior", 2)])
def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(stage, step, few_pictures, tmp_path):
    settings, never = ImageSettings(**SHAPE, steps=5), lambda: False
    whole = prepare(settings, ImageHistory())
    whole.fit(tmp_path / "whole", None, never, str)
    first = prepare(settings, ImageHistory())
    asked = iter(range(100))
    stop_at = step if stage == "vqgan" else 4 + step
    first.fit(tmp_path / "first", None, lambda: next(asked) + 1 >= stop_at, str)
    assert not first.finished
    assert getattr(first.history, stage).steps == step
    first.save(tmp_path / "first")
    record = json.loads((tmp_path / "first" / "run.json").read_text(encoding="utf-8"))
    second = prepare(settings, ImageHistory.restore(record["history"]), tmp_path / "first")
    second.fit(tmp_path / "second", checkpoint_of(tmp_path / "first"), never, str)
    assert second.finished
    assert second.history.vqgan.measures == whole.history.vqgan.measures
    assert second.history.prior.measures == whole.history.prior.measures
    for name, value in whole.prior.state_dict().items():
        assert torch.equal(value, second.prior.state_dict()[name]), name


def test_ctrl_c_saves_and_resume_goes_on(tmp_path):
    shape = [word for name, value in SHAPE.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}

    def start(*arguments):
        command = [sys.executable, "-m", "noria.cli", "quickstart-image", "--output", "m", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes)

    process = start("--seconds", "600", *shape)
    assert next(line for line in process.stderr if "training vqgan" in line)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "stopped in the first stage" in out
    assert "noria quickstart-image --resume --output m" in out
    assert AutoModel.from_pretrained(tmp_path / "m" / "vqgan").config.vocab_size == SHAPE["codes"]
    process = start("--resume", "--seconds", "3")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "going on after" in out
    assert "the same new ones" in out
    assert checkpoint_of(tmp_path / "m") is None
