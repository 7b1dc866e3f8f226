"""VQGAN's losses against what taming-transformers recorded, the adaptive weight, LPIPS, the discriminator's start."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from noria import NoriaVQGANConfig, NoriaVQGANModel
from noria.conversion.torch_file import read_torch
from noria.modeling.image.patch_discriminator import PatchDiscriminator
from noria.training.adversarial_schedule import AdversarialSchedule
from noria.training.codebook_usage import CodebookUsage
from noria.training.perceptual import LINS, LPIPS, RandomFeatures, make_perceptual, packaged_lins, plain_name, read_vgg
from noria.training.vqgan_losses import LARGEST_WEIGHT, PAPER_DELTA, VQGANLosses, adaptive_weight

GOLDEN = Path(__file__).parent / "golden"
RENAMED = {"quant_conv.": "pre_quantizer.", "post_quant_conv.": "post_quantizer.", "quantize.": "quantizer."}
CHOICES = {"ch": "hidden_size", "ch_mult": "channel_multipliers", "num_res_blocks": "num_hidden_layers"}
CHOICES |= {"attn_resolutions": "attention_resolutions", "resolution": "image_size", "z_channels": "latent_channels"}
CHOICES |= {"in_channels": "num_channels", "out_ch": "output_channels"}


def golden(case, **changes):
    """The model, the state of its file, and what was recorded."""
    told = json.loads((GOLDEN / case / "case.json").read_text(encoding="utf-8"))["config"]["params"]
    settings = {CHOICES[name]: value for name, value in told["ddconfig"].items() if name in CHOICES}
    config = NoriaVQGANConfig(vocab_size=told["n_embed"], code_size=told["embed_dim"], **settings, **changes)
    model = NoriaVQGANModel(config).eval()
    state = read_torch(GOLDEN / case / "last.ckpt").content["state_dict"]
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    own = {}
    for name, tensor in state.items():
        old = next((front for front in RENAMED if name.startswith(front)), "")
        if not name.startswith(("loss.", "colorize")):
            own[RENAMED.get(old, "") + name[len(old) :]] = tensor
    model.load_state_dict(own)
    return model, state, load_file(GOLDEN / case / "inputs_outputs.safetensors")


def discriminator_of(state, layers=2):
    found = {n.removeprefix("loss.discriminator."): t for n, t in state.items() if n.startswith("loss.discriminator.")}
    discriminator = PatchDiscriminator(hidden_size=found["main.0.weight"].shape[0], num_hidden_layers=layers)
    discriminator.load_state_dict(found)
    return discriminator.eval()


def close(found, recorded):
    torch.testing.assert_close(found.detach(), recorded, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", ["vqgan", "vqgan_nin"])
def test_the_losses_are_those_of_the_original(case, legacy):
    model, state, recorded = golden(case, legacy_commitment=legacy)
    layers = max(int(name.split(".")[3]) for name in state if name.startswith("loss.discriminator.main.")) // 3
    discriminator = discriminator_of(state, layers)
    losses = VQGANLosses(perceptual_weight=0.0)
    pixels = recorded["pixel_values"].float()
    output = model(pixels)
    terms = losses.generator(pixels, output.reconstruction, output.quantizer_loss, model.last_layer, discriminator)
    close(terms["loss"], recorded[f"aeloss_legacy{int(legacy)}"])
    close(terms["quantizer_loss"], recorded[f"emb_loss_legacy{int(legacy)}"])
    for name, theirs in {
        "d_weight": "d_weight",
        "adversarial_loss": "g_loss",
        "reconstruction_loss": "nll_loss",
    }.items():
        close(terms[name], recorded[theirs])
    close(losses.critic(pixels, output.reconstruction, discriminator)["loss"], recorded["discloss"])


def test_the_loss_of_segmentation_is_that_of_the_original():
    model, _, recorded = golden("vqgan_seg", task="segmentation")
    losses = VQGANLosses(task="segmentation")
    pixels = recorded["pixel_values"].float()
    output = model(pixels)
    close(
        losses.generator(pixels, output.reconstruction, output.quantizer_loss, model.last_layer)["loss"],
        recorded["loss"],
    )


class OneLayer(nn.Module):
    """A decoder of one weight, w x, and losses whose gradients by it are known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, -1.0]))


@pytest.mark.parametrize("delta", [1e-4, PAPER_DELTA, 1.0])
def test_the_adaptive_weight_is_the_ratio_of_the_gradients(delta):
    layer = OneLayer()
    reconstruction = (layer.weight * torch.tensor([3.0, 4.0])).sum()
    adversarial = (layer.weight * torch.tensor([0.0, 0.5])).sum()
    weight = adaptive_weight(reconstruction, adversarial, layer.weight, delta)
    torch.testing.assert_close(weight, torch.tensor(5.0 / (0.5 + delta)))
    assert not weight.requires_grad
    assert layer.weight.grad is None


def test_the_adaptive_weight_has_a_limit():
    layer = OneLayer()
    weight = adaptive_weight(layer.weight.sum() * 1e3, layer.weight.sum() * 0, layer.weight, PAPER_DELTA)
    assert weight == LARGEST_WEIGHT


def test_the_discriminator_is_not_asked_before_its_time():
    model = NoriaVQGANModel(tiny())
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    output = model(pixels)

    def forbidden(x):
        pytest.fail("the discriminator was asked")

    losses = VQGANLosses()
    terms = losses.generator(pixels, output.reconstruction, output.quantizer_loss, model.last_layer, forbidden, 0.0)
    close(terms["loss"], output.loss.detach())
    assert "d_weight" not in terms


def tiny(**changes):
    sizes = {"vocab_size": 16, "hidden_size": 8, "channel_multipliers": [1, 2], "num_hidden_layers": 1}
    sizes |= {"attention_resolutions": [], "image_size": 8, "latent_channels": 4, "code_size": 4, "norm_num_groups": 4}
    return NoriaVQGANConfig(**sizes | changes)


@pytest.mark.parametrize("penalty", [None, "gradient", "lipschitz", "r1", "div"])
@pytest.mark.parametrize("objective", ["hinge", "vanilla", "lsgan", "wgan", "non_saturating"])
def test_the_critic_learns_from_every_objective_and_penalty(objective, penalty):
    discriminator = PatchDiscriminator(hidden_size=4, num_hidden_layers=1, norm="none")
    losses = VQGANLosses(objective=objective, penalty=penalty)
    real, fake = torch.rand(2, 2, 3, 8, 8).requires_grad_() * 2 - 1
    terms = losses.critic(real, fake, discriminator)
    torch.autograd.backward(terms["loss"])
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    assert discriminator.main[0].weight.grad.abs().sum() > 0
    assert ("penalty" in terms) == (penalty is not None)
    assert ("accuracy" in terms) == (objective != "wgan")


def test_the_critic_of_vqgan_takes_halves():
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 1.0])
    answers = iter([real, fake])
    terms = VQGANLosses().critic(real, fake, lambda pixels: next(answers))
    torch.testing.assert_close(terms["loss"], torch.tensor(0.5 * (0.25 + 1.0)))
    assert terms["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "best"}, "best"),
        ({"penalty": "heavy"}, "heavy"),
        ({"pixel_loss": "l3"}, "l3"),
        ({"discriminator_weight": -1.0}, "discriminator_weight"),
        ({"delta": -1.0}, "delta"),
    ],
)
def test_settings_of_the_losses_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        VQGANLosses(**settings)


@pytest.fixture(scope="module")
def vgg_state():
    """Random weights of VGG16's shape under torchvision's names, scaled so that activations neither die nor grow."""
    draws = torch.Generator().manual_seed(0)
    state, width = {}, 3
    widths = [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    for position, wider in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), widths, strict=True):
        scale = (2 / (9 * width)) ** 0.5
        state[f"features.{position}.weight"] = torch.randn(wider, width, 3, 3, generator=draws) * scale
        state[f"features.{position}.bias"] = torch.randn(wider, generator=draws) * 0.1
        width = wider
    return state


@pytest.fixture(scope="module")
def vgg_file(vgg_state, tmp_path_factory):
    if not any(find_spec(place[0]) for place in LINS):
        pytest.skip("no installed package has LPIPS' weights")
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(vgg_state, path)
    return path


def fake_torchvision(state):
    """As much of torchvision as the package lpips touches, since the real one does not load beside every torch."""
    features = nn.Sequential()
    for index in range(30):
        if f"features.{index}.weight" in state:
            weight = state[f"features.{index}.weight"]
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            layer.load_state_dict({"weight": weight, "bias": state[f"features.{index}.bias"]})
        else:
            layer = nn.ReLU() if f"features.{index - 1}.weight" in state else nn.MaxPool2d(2)
        features.append(layer)
    module, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    models.vgg16 = lambda **settings: SimpleNamespace(features=features)
    module.models = models
    return {"torchvision": module, "torchvision.models": models}


def test_lpips_is_that_of_its_package(vgg_state, vgg_file, monkeypatch):
    for name, module in fake_torchvision(vgg_state).items():
        monkeypatch.setitem(sys.modules, name, module)
    original = pytest.importorskip("lpips").LPIPS(net="vgg", verbose=False, pnet_rand=True).eval()
    ours = make_perceptual(vgg_file)
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(x, y), original(x, y), rtol=1e-5, atol=1e-6)


def test_the_lins_are_the_same_in_both_packages(monkeypatch):
    found = []
    for place in LINS:
        if find_spec(place[0]) is None:
            pytest.skip(f"{place[0]} is not installed")
        monkeypatch.setattr("noria.training.perceptual.LINS", [place])
        found.append(packaged_lins())
    assert found[0].keys() == found[1].keys() == {f"lin{index}" for index in range(5)}
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    monkeypatch.setattr("noria.training.perceptual.LINS", [("no_such_package",)])
    with pytest.raises(ModuleNotFoundError, match=r"noria\[metrics\]"):
        packaged_lins()


def test_every_spelling_of_vgg_gives_the_same_weights(vgg_state, vgg_file, tmp_path):
    expected = read_vgg(vgg_file)
    slices = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
    lightning = {}
    for name, tensor in vgg_state.items():
        _, position, kind = name.split(".")
        lightning[f"loss.perceptual_loss.net.slice{slices[int(position)]}.{position}.{kind}"] = tensor
    lins = {f"loss.perceptual_loss.lin{i}.model.1.weight": 2 * expected[f"lin{i}"] for i in range(5)}
    torch.save({"state_dict": lightning | lins, "epoch": 3}, tmp_path / "last.ckpt")
    save_file(vgg_state | {"classifier.0.weight": torch.ones(2, 2)}, tmp_path / "vgg.safetensors")
    from_checkpoint, from_safetensors = (read_vgg(tmp_path / name) for name in ("last.ckpt", "vgg.safetensors"))
    assert expected.keys() == from_checkpoint.keys() == from_safetensors.keys()
    for name, tensor in expected.items():
        assert torch.equal(from_safetensors[name], tensor)
        assert torch.equal(from_checkpoint[name], tensor * (2 if name.startswith("lin") else 1))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("features.28.bias", "28.bias"),
        ("loss.perceptual_loss.net.slice5.28.bias", "28.bias"),
        ("lin3.model.1.weight", "lin3"),
        ("loss.discriminator.main.0.weight", None),
        ("classifier.0.weight", None),
        ("loss.perceptual_loss.scaling_layer.shift", None),
    ],
)
def test_names_of_vgg(key, name):
    assert plain_name(key) == name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["lpips", "random_features"])
def test_a_perceptual_distance_is_symmetric_and_zero_at_equality(kind, channels, vgg_file):
    distance = make_perceptual(vgg_file if kind == "lpips" else kind, channels)
    x, y = torch.rand(2, 2, channels, 16, 16) * 2 - 1
    assert distance(x, y).shape == (2, 1, 1, 1)
    assert (distance(x, y) > 0).all()
    torch.testing.assert_close(distance(x, y), distance(y, x))
    assert torch.equal(distance(x, x), torch.zeros(2, 1, 1, 1))
    assert not distance.train().training
    assert not any(parameter.requires_grad for parameter in distance.parameters())


@pytest.mark.parametrize("kind", ["lpips", "random_features"])
def test_the_gradient_of_a_perceptual_distance_goes_to_the_first_image(kind, vgg_file):
    distance = make_perceptual(vgg_file if kind == "lpips" else kind)
    x = torch.full((1, 3, 16, 16), 0.25, requires_grad=True)
    y = torch.rand(1, 3, 16, 16, requires_grad=True)
    distance(x, y).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert y.grad is None


def test_random_features_are_the_same_for_the_same_seed():
    first, second, other = RandomFeatures(seed=3), RandomFeatures(seed=3), RandomFeatures(seed=4)
    x, y = torch.rand(2, 1, 3, 8, 8)
    assert torch.equal(first(x, y), second(x, y))
    assert not torch.equal(first(x, y), other(x, y))


def test_what_is_no_perceptual_network_is_refused_by_name(tmp_path, vgg_state):
    assert make_perceptual("none") is None
    with pytest.raises(FileNotFoundError, match="vgg"):
        make_perceptual("vgg")
    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        make_perceptual(tmp_path / "other.safetensors")
    lacking = {plain_name(name): tensor for name, tensor in vgg_state.items() if name != "features.24.bias"}
    with pytest.raises(ValueError, match=r"24\.bias"):
        LPIPS(lacking | {f"lin{i}": torch.ones(1, w, 1, 1) for i, w in enumerate((64, 128, 256, 512, 512))})
    with pytest.raises(ValueError, match="channels"):
        RandomFeatures(3)(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("start", "warmup", "factors"),
    [
        (0, 0, [1, 1, 1, 1]),
        (2, 0, [0, 0, 1, 1]),
        (0.5, 0, [0, 0, 1, 1]),
        (1, 3, [0, 0.25, 0.5, 0.75]),
        (0.25, 0.25, [0, 0.5, 1, 1]),
        (1.0, 0, [0, 0, 0, 0]),
    ],
)
def test_the_discriminator_joins_by_step_or_share_and_warms_up(start, warmup, factors):
    schedule = AdversarialSchedule(start, warmup)
    schedule.begin(4)
    assert [schedule.factor(step) for step in range(4)] == factors
    assert [schedule.started(step) for step in range(4)] == [factor > 0 for factor in factors]


def test_the_discriminator_joins_on_a_plateau_and_goes_on_from_a_checkpoint():
    losses = [1 / (step + 1) for step in range(20)] + [0.05] * 60

    def run(schedule, steps):
        for step in steps:
            schedule.observe(step, losses[step])
        return schedule

    whole = AdversarialSchedule("plateau", 2, patience=8)
    whole.begin(80)
    run(whole, range(80))
    assert 28 <= whole.first < 70
    assert whole.factor(whole.first - 1) == 0.0
    assert 0 < whole.factor(whole.first) < whole.factor(whole.first + 2) == 1.0
    half = run(AdversarialSchedule("plateau", 2, patience=8), range(30))
    resumed = AdversarialSchedule("plateau", 2, patience=8)
    resumed.load_state(json.loads(json.dumps(half.state())))
    assert run(resumed, range(30, 80)).first == whole.first


@pytest.mark.parametrize(
    "settings", [{"start": -1}, {"start": 1.5}, {"start": "soon"}, {"warmup": -1}, {"patience": 0}]
)
def test_starts_of_the_discriminator_are_checked(settings):
    with pytest.raises(ValueError, match=str(next(iter(settings.values())))):
        AdversarialSchedule(**settings)


def test_usage_of_a_codebook():
    usage = CodebookUsage(4)
    assert usage.measures() == {}
    usage.add(torch.tensor([[0, 1], [1, 0]]))
    usage.add(torch.tensor([2, 3, 2, 3]))
    assert usage.measures() == {"codebook_usage": 1.0, "codebook_perplexity": pytest.approx(4.0)}
    usage.clear()
    usage.add(torch.tensor([3, 3]))
    assert usage.measures() == {"codebook_usage": 0.25, "codebook_perplexity": pytest.approx(1.0)}
