"""The discriminator of patches: what the original recorded, how much it sees, its norms; ActNorm."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from noria.conversion.torch_file import read_torch
from noria.modeling.image.actnorm import ActNorm
from noria.modeling.image.patch_discriminator import NORMS, PatchDiscriminator

GOLDEN = Path(__file__).parent / "golden" / "vqgan"


def golden():
    state = read_torch(GOLDEN / "last.ckpt").content["state_dict"]
    prefix = "loss.discriminator."
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def test_logits_are_those_of_the_original():
    discriminator = PatchDiscriminator(num_channels=3, hidden_size=8, num_hidden_layers=2).eval()
    discriminator.load_state_dict(golden())
    recorded = load_file(GOLDEN / "inputs_outputs.safetensors")
    for pixels, logits in (("pixel_values", "disc_logits_real"), ("reconstruction", "disc_logits_fake")):
        torch.testing.assert_close(discriminator(recorded[pixels]), recorded[logits], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_what_a_logit_sees(layers, field):
    discriminator = PatchDiscriminator(1, 2, layers, norm="none").double()
    size = 16 * 2**layers
    pixels = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    logits = discriminator(pixels)
    middle = logits.shape[-1] // 2
    (slope,) = torch.autograd.grad(logits[0, 0, middle, middle], pixels)
    seen = slope[0, 0] != 0
    assert seen.any(0).sum() == seen.any(1).sum() == discriminator.receptive_field == field
    assert logits.shape == (1, 1, 14, 14)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layers", [1, 3])
def test_layers_keep_the_originals_places(norm, layers):
    names = PatchDiscriminator(3, 4, layers, norm=norm).state_dict().keys()
    convolutions = [0, *range(2, 3 * layers + 1, 3), 3 * layers + 2]
    assert {f"main.{place}.weight" for place in convolutions} <= names
    assert ("main.2.bias" in names) == (norm != "batch")
    assert ("main.3.running_mean" in names) == (norm == "batch")
    assert ("main.3.loc" in names) == (norm == "act")


def test_widths_stop_at_eightfold():
    widths = [
        x.shape[0] for name, x in PatchDiscriminator(3, 2, 5, norm="none").state_dict().items() if "weight" in name
    ]
    assert widths == [2, 4, 8, 16, 16, 16, 1]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_image_and_one_below(layers):
    discriminator, least = PatchDiscriminator(3, 2, layers), 3 * 2**layers
    assert discriminator(torch.zeros(2, 3, least, least)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match=rf"{least - 1} x {least}.*{layers} layers.*{least} pixels"):
        discriminator(torch.zeros(2, 3, least - 1, least))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"norm": "batched"}, "'batched'"), ({"num_hidden_layers": 0}, "not 0"), ({"hidden_size": 0}, "not 0")],
)
def test_bad_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        PatchDiscriminator(**fields)


def test_the_wrong_number_of_channels_is_named():
    with pytest.raises(ValueError, match=r"b 3 h w.*\(1, 1, 32, 32\)"):
        PatchDiscriminator(3, 2, 2)(torch.zeros(1, 1, 32, 32))


def test_weights_begin_as_published():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(3, 64, 2)
    assert discriminator.main[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert discriminator.main[3].weight.mean().item() == pytest.approx(1, abs=0.01)


def test_actnorm_fits_the_first_batch_and_no_other():
    norm = ActNorm(3)
    x = torch.randn(8, 3, 5, 5) * torch.tensor([1.0, 4.0, 0.1]).view(1, 3, 1, 1) + 2
    torch.testing.assert_close(norm.eval()(x), x)
    first = norm.train()(x)
    torch.testing.assert_close(first.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm(x + 1) - first, norm.scale.expand(8, 3, 5, 5))
    again = ActNorm(3)
    again.load_state_dict(norm.state_dict())
    torch.testing.assert_close(again.train()(x + 1), norm(x + 1))
