"""GANs: any size, files, samples by seed, labels, DCGAN's rules, and bad input."""

import json
import logging

import pytest
import torch
from architectures import GANS
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from noria import NoriaGANConfig, NoriaGANModel
from noria.hub import save
from noria.modeling.image.generators import map_sizes
from noria.modeling.image.spectral import lipschitz_bound


def over(entries):
    return pytest.mark.parametrize("entry", entries, ids=str)


def make(entry, dtype=torch.float32, **fields):
    return entry.model("Model", dtype=dtype, **fields)


def labels_for(model, rows):
    count = model.config.num_labels
    return torch.arange(rows) % count if count else None


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("fields", [{}, {"hidden_size": 48}, {"hidden_size": 7, "num_hidden_layers": 1}], ids=str)
@pytest.mark.parametrize("kind", ["mlp", "dcgan", None])
@pytest.mark.parametrize("size", [1, 5, 16, 27, 28])
def test_defaults_make_a_model_of_any_size(kind, size, fields):
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("noria_gan", image_size=size, generator=kind, **fields))
        pixels = model.generator(torch.zeros(2, 100))
        assert pixels.shape == (2, 3, size, size)
        assert model.critic(pixels).shape == (2,)


def test_published_sizes_are_the_defaults():
    digits = NoriaGANConfig(generator="mlp", image_size=28, num_channels=1)
    assert (digits.generator_widths, digits.critic_widths) == ([256, 512, 1024], [512, 256])
    assert (digits.norm_momentum, digits.critic_norm, digits.output) == (0.8, "none", "tanh")
    photos = NoriaGANConfig()
    assert (photos.generator_widths, photos.critic_widths) == ([512, 256, 128, 64], [64, 128, 256, 512])
    assert (photos.image_size, photos.critic_norm, photos.num_labels) == (64, "batch", 0)
    assert NoriaGANConfig(spectral_norm=True).critic_norm == "none"
    assert NoriaGANConfig(data_size=2).output == "linear"


@pytest.mark.parametrize(("size", "halvings", "sizes"), [(64, 4, [64, 32, 16, 8, 4]), (27, 3, [27, 14, 7, 4])])
def test_maps_double_to_any_size(size, halvings, sizes):
    assert map_sizes(size, halvings) == sizes


def test_words_that_a_gan_does_not_have_are_ignored_with_a_warning(caplog):
    logging.getLogger("transformers").propagate = True
    config = NoriaGANConfig(vocab_size=1234, num_attention_heads=3)
    assert config.vocab_size is None
    assert "num_attention_heads" not in config.to_dict()
    assert "1234" in caplog.text


def test_dcgans_five_rules():
    model = NoriaGANModel(NoriaGANConfig(image_size=32, hidden_size=4))
    layers = [*model.generator.main, *model.critic.main]
    assert not any(isinstance(layer, nn.Linear | nn.MaxPool2d | nn.AvgPool2d | nn.Upsample) for layer in layers)
    up = [layer for layer in model.generator.main if isinstance(layer, nn.ConvTranspose2d)]
    down = [layer for layer in model.critic.main if isinstance(layer, nn.Conv2d)]
    assert [layer.stride for layer in up[1:]] == [layer.stride for layer in down[:-1]] == [(2, 2)] * 3
    norms = [sum(isinstance(layer, nn.BatchNorm2d) for layer in part.main) for part in (model.generator, model.critic)]
    assert norms == [len(up) - 1, len(down) - 2]
    assert isinstance(model.generator.main[-1], nn.Tanh)
    assert sum(isinstance(layer, nn.ReLU) for layer in model.generator.main) == len(up) - 1
    assert all(layer.negative_slope == 0.2 for layer in model.critic.main if isinstance(layer, nn.LeakyReLU))


def test_weights_begin_as_published():
    torch.manual_seed(0)
    model = NoriaGANModel(NoriaGANConfig(image_size=16))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not layer.bias.any()
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.02)
    small, large = (NoriaGANModel(NoriaGANConfig(data_size=2, initializer_range=std)) for std in (None, 0.5))
    assert small.critic.main[0].weight.abs().max() <= 2**-0.5
    assert large.critic.main[0].weight.std().item() == pytest.approx(0.5, rel=0.05)


@over(GANS)
def test_a_saved_model_is_the_same_bit_by_bit(entry, tmp_path):
    model = make(entry)
    model.save_pretrained(tmp_path)
    loaded, told = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    assert same(model, loaded.eval())
    assert loaded.config.num_labels == model.config.num_labels
    labels = labels_for(model, 3)
    assert torch.equal(model.generate_images(3, labels, seed=1), loaded.generate_images(3, labels, seed=1))


@over(GANS)
def test_what_files_lack_is_initialised(entry, tmp_path):
    """Loading begins without memory: a tensor that the files lack must get its first values, buffers too."""
    model = make(entry)
    model.save_pretrained(tmp_path)
    kept = {name: x for name, x in model.state_dict().items() if name.startswith("generator.")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    found = AutoModel.from_pretrained(tmp_path).eval()
    assert same(found.generator, model.generator)
    assert all(x.isfinite().all() and x.abs().max() < 10 for x in found.critic.state_dict().values())
    if model.config.spectral_norm:
        for layer in found.critic.main:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item()
                assert largest == pytest.approx(1, abs=0.1)


@over(GANS)
def test_samples_have_their_shape_and_depend_on_their_seed_alone(entry):
    model = make(entry).train()
    labels = labels_for(model, 4)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    images = model.generate_images(labels=labels, seed=[3, 1, 4, 1])
    assert images.shape == (4, *model.config.sample_shape)
    assert model.training
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    for row, seed in enumerate([3, 1, 4, 1]):
        alone = model.generate_images(labels=None if labels is None else int(labels[row]), seed=[seed])
        torch.testing.assert_close(alone[0], images[row])
    if labels is None:
        torch.testing.assert_close(images[1], images[3])
    other = model.generate_images(labels=labels, seed=[5, 6, 7, 8])
    assert (other - images).abs().flatten(1).amax(1).min() > 1e-5
    if model.config.output == "tanh":
        assert images.abs().max() <= 1


@over(GANS)
def test_one_seed_for_a_batch_and_torchs_own_generator(entry):
    model = make(entry)
    labels = labels_for(model, 3)
    assert torch.equal(model.generate_images(3, labels, 7), model.generate_images(3, labels, 7))
    torch.manual_seed(1)
    first = model(batch_size=3, labels=labels)
    torch.manual_seed(1)
    assert torch.equal(model.generate_images(3, labels), first.pixel_values)
    torch.testing.assert_close(model(first.latents, labels).pixel_values, first.pixel_values)
    if model.config.latent_distribution == "uniform":
        assert first.latents.abs().max() <= 1


@over(GANS)
def test_labels_change_samples_and_logits(entry):
    model = make(entry)
    count = model.config.num_labels
    if not count:
        with pytest.raises(ValueError, match=r"no classes.*leave `labels` out"):
            model.generate_images(labels=0)
        return
    images = model.generate_images(labels=list(range(count)), seed=[2] * count)
    assert (images[0] - images[1]).abs().max() > 1e-4
    logits = model.critic(images[:1].expand_as(images), torch.arange(count))
    assert logits[0] != logits[1]


@over(GANS)
def test_both_networks_learn(entry):
    model = make(entry).train()
    labels = labels_for(model, 4)
    model.critic(model(batch_size=4, labels=labels).pixel_values, labels).mean().backward()
    # A bias before a batch norm, and a logit's own, have no effect on a mean of differences.
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters())


@over(GANS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(entry, dtype):
    model = make(entry).to(dtype)
    labels = labels_for(model, 2)
    images = model.generate_images(2, labels, seed=0)
    assert images.dtype == dtype
    assert images.isfinite().all()
    assert model.critic(images, labels).isfinite().all()


@over(GANS)
def test_channels_last_changes_nothing(entry):
    model = make(entry)
    labels = labels_for(model, 3)
    plain = model.generate_images(3, labels, seed=0)
    logits = model.critic(plain, labels)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model.generate_images(3, labels, seed=0), plain)
    if plain.ndim == 4:
        plain = plain.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.critic(plain, labels), logits)


def test_the_bound_of_a_critic_with_spectral_norm():
    model = make(GANS[-1], torch.float64)
    labels = labels_for(model, 50)
    x, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    rise = (model.critic(x, labels) - model.critic(y, labels)).abs() / (x - y).norm(dim=1)
    assert 0 < rise.max() <= lipschitz_bound(model.critic)


@over(GANS)
def test_flat_code_computes_the_same(entry, tmp_path):
    model = make(entry)
    save(model, tmp_path / "flat")
    assert "pixel_values" in (tmp_path / "flat" / "modeling_gan.py").read_text()
    fields = json.loads((tmp_path / "flat" / "config.json").read_text())
    assert fields["auto_map"]["AutoModel"] == "modeling_gan.NoriaGANModel"
    flat = get_class_from_dynamic_module("modeling_gan.NoriaGANModel", str(tmp_path / "flat"))
    loaded = flat.from_pretrained(tmp_path / "flat")
    assert not isinstance(loaded, NoriaGANModel)
    labels = labels_for(model, 2)
    assert torch.equal(loaded.generate_images(2, labels, seed=0), model.generate_images(2, labels, seed=0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generator": "gru"}, "`generator` must be one of mlp, dcgan, not 'gru'"),
        ({"critic_norm": "instance"}, "`critic_norm`.*'instance'"),
        ({"output": "sigmoid"}, "`output`.*'sigmoid'"),
        ({"latent_distribution": "cauchy"}, "`latent_distribution`.*'cauchy'"),
        ({"image_size": 8, "data_size": 2}, r"`image_size` \(8\).*`data_size` \(2\)"),
        ({"data_size": 2, "generator": "dcgan"}, '`generator` must be "mlp".*2'),
        ({"data_size": 2, "critic": "dcgan"}, '`critic` must be "mlp".*2'),
        ({"image_size": 0}, "`image_size` must be at least 1, not 0"),
        ({"data_size": 0}, "`data_size` must be at least 1, not 0"),
        ({"hidden_size": -4}, "`hidden_size` must be at least 1, not -4"),
        ({"num_labels": -1}, "`num_labels` must be at least 0, not -1"),
        ({"num_hidden_layers": -1}, "`num_hidden_layers` must be at least 0, not -1"),
        ({"num_hidden_layers": 3, "generator_widths": [4, 4]}, r"`num_hidden_layers` \(3\).*\[4, 4\]"),
        ({"critic_widths": [4, 0]}, r"`critic_widths`.*\[4, 0\]"),
        ({"norm_momentum": 1.0}, "`norm_momentum`.*1.0"),
        ({"initializer_range": 0.0}, "`initializer_range`.*0.0"),
    ],
    ids=str,
)
def test_bad_configurations_are_named(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        NoriaGANConfig(**fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model(torch.zeros(2, 7)), r"\(b 100\).*\(2, 7\)"),
        (lambda model: model(batch_size=0, labels=[]), "`batch_size` must be at least 1, not 0"),
        (lambda model: model.generate_images(2), r"3 classes: give `labels`, each in 0\.\.2"),
        (lambda model: model.generate_images(2, [0, 3]), r"0\.\.2, not be 3"),
        (lambda model: model.generate_images(2, -1), r"0\.\.2, not be -1"),
        (lambda model: model.generate_images(2, [0, 1, 2]), r"\(3,\) do not fit 2"),
        (lambda model: model.generate_images(2, 0.5), "must be integers"),
        (lambda model: model.generate_images(2, 0, [1, 2, 3]), "3 seeds do not fit 2"),
        (lambda model: model.critic(torch.zeros(1, 3, 16, 16), torch.tensor([0])), r"b 3 13 13.*\(1, 3, 16, 16\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(make(GANS[2]))
