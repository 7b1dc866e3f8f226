"""examples/train_gan.py: from beginning to end on a tiny budget, and what it complains of."""

import gzip
import importlib.util
import re
from pathlib import Path

import pytest

from noria import NoriaGANModel

SCRIPT = Path(__file__).parents[1] / "examples" / "train_gan.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("example_train_gan", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(tmp_path):
    """Images whose brightness is their label."""
    lines = [",".join(["0"] * 300 + [str(25 * (i % 10))] * 484 + [str(i % 10)]) for i in range(40)]
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode("ascii")))
    return path


@pytest.mark.parametrize(
    "choices",
    [
        [],
        ["--objective", "hinge", "--penalty", "none", "--spectral-norm"],
        ["--penalty", "none", "--network", "dcgan"],
    ],
)
def test_a_gan_is_trained_judged_and_saved(script, images, tmp_path, capsys, choices):
    folder = tmp_path / "gan"
    arguments = ["--digits", images, "--steps", 2, "--hidden-size", 4, "--output", folder, *choices]
    assert script.main(list(map(str, arguments))) == 0
    told = capsys.readouterr().out
    assert re.search(r"^ +2 +-?\d+\.\d{3} +(-|[01]\.\d{3})$", told, re.MULTILINE)
    assert re.search(r"asked for: +[01]\.\d{3}$", told, re.MULTILINE)
    assert NoriaGANModel.from_pretrained(folder).config.num_labels == 10
    image = pytest.importorskip("PIL.Image")
    with image.open(folder / "samples.png") as sheet:
        assert sheet.size == (16 * 28, 10 * 28)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--digits", "nowhere.csv.gz"], "nowhere.csv.gz"),
        (["--objective", "wasserstein"], "wasserstein"),
    ],
)
def test_complaints_are_one_line(script, capsys, arguments, message):
    try:
        status = script.main(arguments)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
