"""Every kind of picture becomes pixels that a model takes, or an error that names its file; and pixels come back."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from noria import NoriaVQGANConfig, NoriaVQGANImageProcessor, NoriaVQGANModel, hub
from noria.image_processing.folder import ImageFolder, find_images

RED, WHITE = (255, 0, 0), (255, 255, 255)


def plain(**options):
    """A processor that takes images as they are."""
    return NoriaVQGANImageProcessor(**{"do_resize": False, "crop_size": None, "multiple_of": 4, **options})


def gradient(height, width, channels=3):
    """Pixels (h w c) that tell every place and channel apart."""
    rows, columns = np.mgrid[:height, :width]
    planes = [(rows * 7 + columns * 3 + 50 * i) % 256 for i in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def pixels(processor, image, **options):
    return processor(image, return_tensors="pt", **options)["pixel_values"]


def test_pixels_are_from_minus_one_to_one_and_come_back():
    array = gradient(8, 12)
    values = pixels(plain(), Image.fromarray(array))
    assert values.dtype == torch.float32
    expected = torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(values, expected)
    (back,) = plain().post_process(values)
    assert np.array_equal(np.asarray(back), array)
    unscaled = pixels(plain(do_normalize=False), Image.fromarray(array))
    torch.testing.assert_close(unscaled, (expected + 1) / 2)


@pytest.mark.parametrize(
    "kind",
    [
        "path",
        "text",
        "pil",
        "uint8",
        "tensor",
        "uint16",
        "int64",
        "float",
        "bfloat16",
        "first",
        "batch",
        "list",
        "nested",
    ],
)
def test_every_kind_of_source_gives_the_same(kind, tmp_path):
    array = gradient(8, 12)
    path = tmp_path / "picture.png"
    Image.fromarray(array).save(path)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    sources = {
        "path": path,
        "text": str(path),
        "pil": Image.open(path),
        "uint8": array,
        "tensor": tensor,
        "uint16": array.astype(np.uint16) * 257,
        "int64": array.astype(np.int64),
        "float": array / 255,
        "bfloat16": (tensor / 255).bfloat16(),
        "first": np.moveaxis(array, -1, 0),
        "batch": array[None],
        "list": [path],
        "nested": [[array]],
    }
    tolerance = 2**-7 if kind == "bfloat16" else 1e-6
    torch.testing.assert_close(
        pixels(plain(), sources[kind]), pixels(plain(), Image.fromarray(array)), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_is_read(mode, channels):
    white = Image.new("L", (8, 4), 255)
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 8), 65535, dtype=np.uint16))
    elif mode == "I":
        image = Image.fromarray(np.full((4, 8), 65535, dtype=np.int32))
    elif mode == "F":
        image = Image.fromarray(np.ones((4, 8), dtype=np.float32))
    elif mode in ("PA", "HSV", "YCbCr", "CMYK"):
        image = white.convert("RGB").convert("P" if mode == "PA" else mode)
        image = image.convert(mode)
    else:
        image = white.convert(mode)
    values = pixels(plain(num_channels=channels), image)
    assert values.shape == (1, channels, 4, 8)
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=0.02)


def test_colours_become_grey_by_their_luma():
    values = pixels(plain(num_channels=1, do_normalize=False), Image.new("RGB", (4, 4), RED))
    torch.testing.assert_close(values, torch.full((1, 1, 4, 4), 0.299), rtol=0, atol=0.005)
    deep = pixels(plain(num_channels=1, do_normalize=False), np.array([[[1.0, 0, 0]]] * 4).repeat(4, axis=1))
    torch.testing.assert_close(deep, torch.full((1, 1, 4, 4), 0.299))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("background", "shown"), [("white", 1.0), ("black", 0.0), ("#808080", 128 / 255)])
def test_transparent_places_show_the_background(background, shown, deep):
    array = np.zeros((4, 8, 4), dtype=np.uint8)
    array[:, 4:] = (*RED, 255)
    source = array / 255 if deep else Image.fromarray(array)
    values = pixels(plain(background=background, do_normalize=False), source)[0]
    torch.testing.assert_close(values[:, :, :4], torch.full((3, 4, 4), shown))
    torch.testing.assert_close(values[:, 0, 6], torch.tensor([1.0, 0, 0]))
    kept = pixels(plain(num_channels=4, do_normalize=False), source)[0]
    assert kept[3, 0, 0] == 0
    assert kept[3, 0, 6] == 1


def test_a_palette_with_a_transparent_colour_shows_the_background(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "palette.png", transparency=0)
    values = pixels(plain(), tmp_path / "palette.png")
    assert torch.equal(values, torch.ones(1, 3, 4, 4))


def test_sixteen_bits_keep_their_digits(tmp_path):
    array = np.arange(32, dtype=np.uint16).reshape(4, 8) + 30000
    Image.fromarray(array).save(tmp_path / "deep.png")
    values = pixels(plain(num_channels=1, do_normalize=False), tmp_path / "deep.png")
    torch.testing.assert_close(values[0, 0], torch.from_numpy(array / 65535).float())
    assert values.unique().numel() == 32


def test_orientation_is_applied(tmp_path):
    array = gradient(8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    turned = pixels(plain(), tmp_path / "turned.png")
    torch.testing.assert_close(turned, pixels(plain(), np.ascontiguousarray(np.rot90(array, -1))))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 500), (500, 3), (64, 64), (65, 63), (1000, 300)])
def test_default_sizes_fit_the_model(height, width):
    assert pixels(NoriaVQGANImageProcessor(size=64, crop_size=64), gradient(height, width)).shape == (1, 3, 64, 64)


def test_scaling_and_cutting_in_one_step_is_scaling_then_cutting():
    image = Image.fromarray(gradient(90, 150)).resize((600, 360), Image.Resampling.BICUBIC)
    found = pixels(NoriaVQGANImageProcessor(size=96, crop_size=64), image)
    cut = image.resize((160, 96), Image.Resampling.BICUBIC).crop((48, 16, 112, 80))
    torch.testing.assert_close(found[..., 2:-2, 2:-2], pixels(plain(), cut)[..., 2:-2, 2:-2], rtol=0, atol=0.02)


def test_other_sizes():
    image = gradient(50, 70)
    assert pixels(plain(), image).shape[2:] == (48, 68)
    assert pixels(plain(do_resize=True, size={"height": 20, "width": 32}), image).shape[2:] == (20, 32)
    assert pixels(plain(crop_size={"height": 8, "width": 16}), image).shape[2:] == (8, 16)
    assert pixels(NoriaVQGANImageProcessor(), image, size=32, crop_size=32).shape[2:] == (32, 32)
    middle = pixels(plain(crop_size=4), image)
    torch.testing.assert_close(middle, pixels(plain(), image[23:27, 33:37]))


def one_hot(labels, count):
    return torch.nn.functional.one_hot(torch.as_tensor(labels).long(), count).permute(2, 0, 1)[None].float()


def test_maps_of_labels_become_one_hot(tmp_path):
    labels = np.arange(32, dtype=np.uint8).reshape(4, 8) % 5
    path = tmp_path / "labels.png"
    paletted = Image.fromarray(labels).convert("P")
    paletted.putdata(labels.flatten().tolist())
    paletted.save(path)
    processor = plain(num_labels=5)
    tensor = torch.from_numpy(labels)
    for source in (
        path,
        Image.fromarray(labels),
        labels,
        tensor,
        tensor[None, None],
        labels.astype(np.int64)[..., None],
    ):
        found = processor(segmentation_maps=source, return_tensors="pt")
        assert list(found) == ["pixel_values"]
        assert torch.equal(found["pixel_values"], one_hot(labels, 5))
    (back,) = processor.post_process_semantic_segmentation(one_hot(labels, 5))
    assert torch.equal(back, tensor.long())


def test_labels_are_shifted_as_for_coco():
    labels = np.array([[255, 0, 1, 181]] * 4, dtype=np.uint8)
    processor = plain(num_labels=183, shift_labels=True)
    found = processor(segmentation_maps=labels, return_tensors="pt")["pixel_values"]
    assert torch.equal(found.argmax(1)[0, 0], torch.tensor([0, 1, 2, 182]))
    assert torch.equal(processor.post_process_semantic_segmentation(found)[0], torch.from_numpy(labels).long())


def test_images_and_their_maps_are_cut_alike():
    array = gradient(40, 70)
    labels = (array[..., 0] > 127).astype(np.uint8)
    image = np.repeat(labels[..., None] * 255, 3, axis=2)
    for options in ({}, {"do_resize": True, "size": 80}, {"crop_size": {"height": 16, "width": 20}}):
        found = plain(num_labels=2, resample=0, **options)([image], segmentation_maps=[labels], return_tensors="pt")
        assert torch.equal(found["pixel_values"][:, 0], found["condition"][:, 1] * 2 - 1)


def write_damaged(path, kind):
    Image.fromarray(gradient(64, 64)).save(path)
    data = path.read_bytes()
    broken = {"short": data[: len(data) // 2], "empty": b"", "text": b"no image", "header": data[:20]}
    path.write_bytes(broken[kind])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.bmp", "a.tif"])
@pytest.mark.parametrize("kind", ["short", "empty", "text", "header"])
def test_damaged_files_are_named(name, kind, tmp_path):
    write_damaged(tmp_path / name, kind)
    for source in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(ValueError, match=name):
            pixels(plain(), source)


def test_missing_files_and_other_things():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        pixels(plain(), "nowhere.png")
    with pytest.raises(ValueError, match="not dict"):
        pixels(plain(), {"image": 1})
    with pytest.raises(ValueError, match="nothing to process"):
        plain()()
    with pytest.raises(ValueError, match="list is empty"):
        plain()([])


def test_large_images_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("1", (5000, 4000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large\.png has 5000 x 4000 pixels, more than `max_pixels` \(1000000\)"):
        pixels(plain(max_pixels=10**6), tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    with pytest.raises(ValueError, match=r"large\.png is too large"):
        pixels(plain(), tmp_path / "large.png")
    with pytest.raises(ValueError, match="max_pixels"):
        pixels(plain(do_resize=True, size=256, max_pixels=10**6), gradient(4, 400))
    assert pixels(plain(do_resize=True, size=256, crop_size=256, max_pixels=10**6), gradient(4, 400)).shape[-1] == 256


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.full((4, 4, 3), np.nan), "NaN or infinite"),
        (np.full((4, 4, 3), np.inf, dtype=np.float32), "NaN or infinite"),
        (np.full((4, 4, 3), -0.5), r"must lie in 0..1; .* from -0.5 to -0.5"),
        (np.full((4, 4), 2.0), r"must lie in 0..1; .* from 2 to 2"),
        (np.full((4, 4), 300), r"must lie in 0..255; .* from 300 to 300"),
        (np.zeros((5, 8, 8)), r"1 to 4 channels, not \(5, 8, 8\)"),
        (np.zeros((6, 7, 9)), r"1 to 4 channels, not \(6, 7, 9\)"),
        (np.zeros(4), r"not \(4,\)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "empty: 4 x 0"),
        (np.zeros((4, 4, 3), dtype=np.complex64), "must be real"),
        (Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "NaN or infinite"),
        (Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)), "70000"),
        (np.zeros((3, 4, 3), dtype=np.uint8), "cannot be cut to 4 x 4"),
    ],
)
def test_wrong_arrays_are_named(array, match):
    with pytest.raises(ValueError, match=match):
        pixels(plain(), array)


def test_ambiguous_channels():
    array = gradient(4, 4, 4)[:, :, :3]
    ambiguous = np.ascontiguousarray(np.moveaxis(gradient(4, 3, 4), 1, 1))
    assert pixels(plain(), array).shape == (1, 3, 4, 4)
    first = pixels(plain(num_channels=4, multiple_of=1), ambiguous, input_data_format="channels_first")
    last = pixels(plain(num_channels=4, multiple_of=1), ambiguous, input_data_format="channels_last")
    assert first.shape == (1, 4, 3, 4)
    assert last.shape == (1, 4, 4, 3)


@pytest.mark.parametrize(
    ("maps", "match"),
    [
        (np.full((4, 4), 5), r"labels must lie in 0..4, not be 5"),
        (np.full((4, 4), -1), r"labels must lie in 0..4, not be -1"),
        (np.zeros((4, 4, 1), dtype=np.float32), "float32"),
        (Image.new("RGB", (4, 4)), r"\(4, 4, 3\)"),
    ],
)
def test_wrong_maps_are_named(maps, match):
    with pytest.raises(ValueError, match=match):
        plain(num_labels=5)(segmentation_maps=maps)


def test_maps_that_do_not_fit():
    with pytest.raises(ValueError, match="`num_labels` says"):
        plain()(segmentation_maps=np.zeros((4, 4), dtype=int))
    with pytest.raises(ValueError, match="one segmentation map for each image"):
        plain(num_labels=2)(gradient(4, 4), segmentation_maps=np.zeros((4, 8), dtype=int))
    with pytest.raises(ValueError, match="4 x 4, 8 x 8"):
        plain()([gradient(4, 4), gradient(8, 8)], return_tensors="pt")
    assert [one.shape for one in plain()([gradient(4, 4), gradient(8, 8)])["pixel_values"]] == [(3, 4, 4), (3, 8, 8)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 0}, "`size` must be at least 1"),
        ({"size": {"longest_edge": 3}}, "`size` must be a number, or have the keys height and width or shortest_edge"),
        ({"crop_size": {"shortest_edge": 32}}, "`crop_size` must be a number, or have the keys height and width"),
        ({"crop_size": 100}, "`crop_size` must be multiples of 16, such as 96, not 100"),
        ({"num_channels": 2}, "must be 1, 3 or 4, not 2"),
        ({"multiple_of": 0}, "`multiple_of` must be at least 1, not 0"),
        ({"max_pixels": 0}, "`max_pixels` must be at least 1, not 0"),
        ({"num_labels": 0}, "`num_labels` must be at least 1, not 0"),
    ],
)
def test_wrong_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        NoriaVQGANImageProcessor(**options)
    with pytest.raises(ValueError, match=match):
        NoriaVQGANImageProcessor()(gradient(16, 16), **options)


def test_unknown_options_of_a_call_are_named():
    with pytest.raises(ValueError, match="unknown option 'do_rescale'"):
        plain()(gradient(4, 4), do_rescale=True)


def test_post_processing_cuts_off_and_refuses():
    values = torch.tensor([-3.0, -1, 0, 1, 3]).expand(1, 3, 4, 5)
    assert np.array_equal(plain().post_process(values, "np")[0, 0, :, 0], [0, 0, 0.5, 1, 1])
    assert plain().post_process(values, "pt").shape == (1, 3, 4, 5)
    assert plain().post_process(values[:, :1])[0].mode == "L"
    assert plain().post_process(values.bfloat16().requires_grad_())[0].size == (5, 4)
    for wrong, kind, match in (
        (values, "jpeg", "must be one of pil, np, pt, not 'jpeg'"),
        (values[0], "pil", r"\(b c h w\)"),
        (values * torch.nan, "pil", "NaN"),
        (values[:, :1].expand(1, 7, 4, 5), "pil", "1, 3 or 4 channels, not 7"),
    ):
        with pytest.raises(ValueError, match=match):
            plain().post_process(wrong, kind)
    with pytest.raises(ValueError, match=r"\(b labels h w\)"):
        plain().post_process_semantic_segmentation(values[0])


def config(**options):
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "channel_multipliers": [1, 1],
        "image_size": 17,
        "vocab_size": 8,
    }
    return NoriaVQGANConfig(**{**sizes, "latent_channels": 4, "code_size": 4, **options})


def test_a_processor_for_a_model():
    model = NoriaVQGANModel(config())
    processor = NoriaVQGANImageProcessor.for_model(model, background="black")
    assert (processor.multiple_of, processor.crop_size) == (2, {"height": 16, "width": 16})
    assert processor.background == "black"
    assert model.encode(pixels(processor, gradient(9, 33))).codes.shape == (1, 8, 8)
    assert NoriaVQGANImageProcessor.for_model(config(num_channels=1)).num_channels == 1
    labels = NoriaVQGANImageProcessor.for_model(config(num_channels=7, task="segmentation"))
    found = labels(segmentation_maps=np.full((20, 30), 6), return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 7, 16, 16)
    with pytest.raises(ValueError, match="does not say what images"):
        NoriaVQGANImageProcessor.for_model(AutoConfigOfText())


class AutoConfigOfText:
    model_type = "gpt2"


@pytest.mark.parametrize("crop_size", [32, None])
def test_it_is_saved_with_the_model(crop_size, tmp_path):
    NoriaVQGANModel(config()).save_pretrained(tmp_path)
    processor = NoriaVQGANImageProcessor(size=32, crop_size=crop_size, num_labels=3, background="black")
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"] == (
        "NoriaVQGANImageProcessor"
    )
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is NoriaVQGANImageProcessor
    assert again.to_dict() == processor.to_dict()
    image = gradient(33, 64)
    assert torch.equal(pixels(again, image), pixels(processor, image))
    assert NoriaVQGANImageProcessor.from_pretrained(tmp_path, size=64, crop_size=64).size == {"shortest_edge": 64}


def test_its_code_travels_with_the_model(tmp_path):
    model = NoriaVQGANModel(config())
    folder = hub.save(model, tmp_path / "model", image_processor=NoriaVQGANImageProcessor.for_model(model))
    program = f"""
import sys
class Absent:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "noria":
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import numpy
from transformers import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
print(processor(numpy.zeros((20, 30, 3), numpy.uint8), return_tensors="pt")["pixel_values"].shape)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    assert "torch.Size([1, 3, 16, 16])" in done.stdout


def test_without_pillow_the_package_works_and_the_processor_says_what_is_missing():
    program = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "PIL" else find(name, *rest)
sys.modules["PIL"] = None
import noria
print(noria.NoriaVQGANConfig().downsampling)
try:
    noria.NoriaVQGANImageProcessor()
except ImportError as error:
    print("pillow" in str(error).lower())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["16", "True"]


def test_folders(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="holds no image"):
        find_images(tmp_path)
    (tmp_path / "below").mkdir()
    for name in ("b.PNG", "below/a.jpg"):
        Image.fromarray(gradient(20, 30)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"broken")
    folder = ImageFolder(tmp_path, plain())
    assert [path.name for path in folder.paths] == ["b.PNG", "a.jpg", "c.png"]
    assert len(folder) == 3
    assert folder[0]["pixel_values"].shape == (3, 20, 28)
    with pytest.raises(ValueError, match=r"c\.png"):
        folder[2]
