"""Measures of reconstructions: against their definitions, with what they were computed on, or a reason why not."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from noria import NoriaVQGANConfig, NoriaVQGANModel
from noria.training.image_metrics import describe, evaluate_reconstruction, squared
from noria.training.image_quality import peak_signal_to_noise
from noria.training.perceptual import RandomFeatures

pytest.importorskip("torchmetrics")


@pytest.fixture(scope="module")
def model():
    sizes = {"vocab_size": 16, "hidden_size": 8, "channel_multipliers": [1, 2], "num_hidden_layers": 1}
    sizes |= {"attention_resolutions": [], "image_size": 16, "latent_channels": 4, "code_size": 4}
    torch.manual_seed(1)
    return NoriaVQGANModel(NoriaVQGANConfig(**sizes, norm_num_groups=4)).train()


def images(count, size=16, channels=3):
    draws = torch.Generator().manual_seed(2)
    return [torch.rand(channels, size, size, generator=draws) * 2 - 1 for _ in range(count)]


@torch.no_grad()
def reconstructed(model, pixels):
    model.eval()
    output = model(pixels).reconstruction.clamp(-1, 1)
    model.train()
    return output


class Features(nn.Module):
    """What stands in for Inception: means of an image's quarters."""

    num_features = 12

    def forward(self, levels):
        assert levels.dtype == torch.uint8
        return nn.functional.adaptive_avg_pool2d(levels.double(), 2).flatten(1)


def frechet(x, y):
    """|m - n|² + tr(A + B - 2 (AB)^(1/2)) of two samples' means and covariances."""
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    roots = np.linalg.eigvals(a @ b).astype(complex) ** 0.5
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * roots.real.sum())


def levels(pixels):
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def test_measures_are_what_their_definitions_say(model):
    rows = [{"pixel_values": image} for image in images(21)]
    pixels = torch.stack([row["pixel_values"] for row in rows])
    output, features = reconstructed(model, pixels), Features()
    measures = evaluate_reconstruction(model, rows, batch_size=4, inception=features, lpips=RandomFeatures())
    errors = (output - pixels).square().mean((1, 2, 3))
    assert measures["psnr"] == pytest.approx((10 * torch.log10(4 / errors)).mean().item(), rel=1e-4)
    assert measures["psnr"] == pytest.approx(peak_signal_to_noise(output, pixels).mean().item(), rel=1e-4)
    assert measures["lpips"] == pytest.approx(RandomFeatures()(output, pixels).mean().item(), rel=1e-4)
    expected = frechet(features(levels(pixels)), features(levels(output)))
    assert measures["rfid"] == pytest.approx(expected, rel=1e-3)
    assert -1 <= measures["ssim"] < 1
    assert 0 < measures["codebook_usage"] <= 1 <= measures["codebook_perplexity"] <= 16
    assert {name: measures[name] for name in ("samples", "size", "resize")} == {
        "samples": 21,
        "size": "16x16",
        "resize": "none",
    }
    assert (measures["lpips_backbone"], measures["rfid_backbone"]) == ("RandomFeatures", "Features")
    assert model.training


def test_equal_images_are_measured_as_such(model, monkeypatch):
    rows = images(3)
    told = iter([torch.stack(rows)])
    monkeypatch.setattr(model, "decode_codes", lambda codes: next(told))
    measures = evaluate_reconstruction(model, rows, lpips=RandomFeatures())
    assert measures["psnr"] == float("inf")
    assert measures["ssim"] == pytest.approx(1.0)
    assert measures["lpips"] == 0.0
    assert peak_signal_to_noise(rows[0][None], rows[0][None]).isfinite().all()


def test_without_weights_the_result_says_so(model):
    measures = evaluate_reconstruction(model, images(3))
    assert measures["lpips"] == measures["rfid"] == "not computed: no backbone weights"
    text = describe(measures)
    assert "samples: 3\nsize: 16x16\nresize: none\n" in text
    assert "rfid: not computed: no backbone weights" in text
    small = evaluate_reconstruction(model, images(2, 8))
    assert small["ssim"].startswith("not computed: images are smaller")
    alone = evaluate_reconstruction(model, images(1), inception=Features())
    assert alone["rfid"].startswith("not computed: it takes two images")


def test_images_of_many_sizes_need_a_resize_which_is_told(model):
    rows = [*images(2, 16), *images(2, 24)]
    with pytest.raises(ValueError, match="resize"):
        evaluate_reconstruction(model, rows)
    measures = evaluate_reconstruction(model, rows, resize=16)
    assert measures["size"] == "16x16"
    assert measures["resize"] == "shorter side to 16, bicubic with antialiasing, middle crop"
    apart = evaluate_reconstruction(model, rows, batch_size=2)
    assert apart["size"] == "16x16, 24x24"


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16), (33, 17), (5, 9), (1, 3)])
def test_a_resize_gives_squares_of_the_middle(shape):
    image = torch.zeros(3, *shape)
    image[:, shape[0] // 2, shape[1] // 2] = 1
    square = squared(image, 16)
    assert square.shape == (3, 16, 16)
    assert square.abs().max() <= 1
    top, left = divmod(square[0].argmax().item(), 16)
    assert abs(top - 8) <= 16 / min(shape) + 1
    assert abs(left - 8) <= 16 / min(shape) + 1


def test_what_cannot_be_evaluated_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="no image"):
        evaluate_reconstruction(model, [])
    with pytest.raises(ValueError, match=r"c h w"):
        evaluate_reconstruction(model, [torch.zeros(16, 16)])
    with pytest.raises(FileNotFoundError, match="inception"):
        evaluate_reconstruction(model, images(2), inception=tmp_path / "inception.pth")
    with pytest.raises(FileNotFoundError, match="vgg"):
        evaluate_reconstruction(model, images(2), lpips=tmp_path / "vgg.pth")


def test_without_torchmetrics_the_error_names_the_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    with pytest.raises(ModuleNotFoundError, match=r"noria\[metrics\]"):
        evaluate_reconstruction(model, images(2))
