"""The recipe for a VQGAN and its prior on a folder of images: it runs, goes on, and complains in one line."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

Image = pytest.importorskip("PIL.Image", reason="the image extra is not installed")

SCRIPT = Path(__file__).parents[1] / "examples" / "train_vqgan.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("example_train_vqgan", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.set_num_threads(1)
    return module


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 40 small images of one colour each."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(40):
        Image.new("RGB", (40, 32), (6 * number, 128, 255 - 6 * number)).save(folder / f"{number:02}.png")
    return folder


def test_both_stages_are_trained_and_go_on(recipe, images, tmp_path):
    arguments = ["--quick", "--images", images, "--output", tmp_path, "--perceptual", "none"]
    assert recipe.main([str(word) for word in arguments]) == 0
    vqgan, prior = (AutoModel.from_pretrained(tmp_path / name).eval() for name in ("vqgan", "prior"))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "vqgan")
    pixels = processor(images / "07.png", return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    assert torch.equal(vqgan.encode(pixels).codes, prior.vqgan.encode(pixels).codes)
    assert prior.generate_images(seed=1).shape == (1, 3, 32, 32)
    assert Image.open(tmp_path / "reconstructions.png").size > (2 * 32, 2 * 32)
    assert Image.open(tmp_path / "samples.png").size > (8 * 32, 2 * 32)
    assert recipe.main([*map(str, arguments), "--stage", "prior", "--steps", "5"]) == 0
    assert (tmp_path / "prior-checkpoints" / "checkpoint-5").is_dir()
    again = AutoModel.from_pretrained(tmp_path / "vqgan").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in vqgan.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a folder of images with --images"),
        (["--quick", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["--quick", "--images", "nowhere"], "there is no folder nowhere"),
        (["--quick", "--objective", "moon", "--stage", "vqgan"], "moon"),
        (["--quick", "--perceptual", "vgg.pth", "--stage", "vqgan"], "vgg.pth"),
    ],
)
def test_bad_settings_are_refused_in_one_line(recipe, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert recipe.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("train_vqgan.py: error: ")
    assert message in error


def test_too_few_images_are_refused(recipe, capsys, images, tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "one.png").write_bytes((images / "00.png").read_bytes())
    assert recipe.main(["--quick", "--images", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "1 images are too few" in capsys.readouterr().err
