"""GANTrainer: every objective learns, critics stay within limits, n_critic, resuming, labels, and what stops a run."""

import math
from itertools import pairwise

import pytest
import torch

from noria import NoriaGANConfig, NoriaGANModel
from noria.modeling.image.objectives import OBJECTIVES
from noria.modeling.image.penalties import PENALTIES
from noria.training.gan_trainer import GANTrainer, gan_arguments

VECTORS = {
    "data_size": 2,
    "latent_size": 4,
    "generator_widths": [16, 16],
    "critic_widths": [16, 16],
    "generator_norm": "none",
}
IMAGES = {"image_size": 8, "num_channels": 1, "hidden_size": 4, "latent_size": 4}


def rows(shape=(2,), count=64, labels=0, shift=2.0):
    draw = torch.Generator().manual_seed(0)
    data = 0.3 * torch.randn(count, *shape, generator=draw) + shift
    return [{"pixel_values": x} | ({"labels": i % labels} if labels else {}) for i, x in enumerate(data)]


def make(tmp_path, fields=VECTORS, data=None, *, steps=4, objective="non_saturating", penalty=None, **settings):
    """A trainer of a fresh model; settings of TrainingArguments are under `args`."""
    own = {"max_steps": steps, "per_device_train_batch_size": 8, "logging_steps": 1, "use_cpu": True, "seed": 3}
    own |= {"save_strategy": "no", "disable_tqdm": True, **settings.pop("args", {})}
    torch.manual_seed(1)
    model = NoriaGANModel(NoriaGANConfig(**fields))
    return GANTrainer(
        model,
        gan_arguments(tmp_path, objective, penalty, **own),
        objective=objective,
        penalty=penalty,
        train_dataset=rows() if data is None else data,
        **settings,
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(module):
    return {name: x.clone() for name, x in module.state_dict().items()}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_moves_both_networks(objective, tmp_path):
    trainer = make(tmp_path, objective=objective, n_critic=1)
    before = weights(trainer.model)
    trainer.train()
    moved = {name for name, x in trainer.model.state_dict().items() if not torch.equal(x, before[name])}
    # Within the hinge's margins real and generated samples move a logit's own bias in opposite ways.
    assert before.keys() - moved <= {"critic.main.6.bias"}
    values, losses = logged(trainer, "critic_value"), logged(trainer, "critic_loss")
    assert values == pytest.approx([-loss for loss in losses])
    accuracies = logged(trainer, "critic_accuracy")
    assert len(accuracies) == (0 if objective == "wgan" else 4)
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_penalty_is_a_part_of_the_critics_loss(penalty, tmp_path):
    trainer = make(tmp_path, objective="wgan", penalty=penalty, penalty_weight=3.0)
    trainer.train()
    parts = zip(logged(trainer, "critic_value"), logged(trainer, "critic_penalty"), strict=True)
    assert logged(trainer, "critic_loss") == pytest.approx([-value + 3 * term for value, term in parts], rel=1e-5)
    assert (trainer.clip, trainer.n_critic) == (0, 5)


def test_wgans_defaults_are_the_articles(tmp_path):
    trainer = make(tmp_path, objective="wgan")
    trainer.train()
    assert type(trainer.optimizer.optimizer).__name__ == "RMSprop"
    assert (trainer.args.learning_rate, trainer.clip, trainer.n_critic) == (5e-5, 0.01, 5)
    assert max(p.abs().max().item() for p in trainer.critic.parameters()) == pytest.approx(0.01)
    assert max(p.abs().max().item() for p in trainer.model.generator.parameters()) > 0.1
    penalised = gan_arguments(tmp_path, "wgan", "gradient")
    assert (penalised.learning_rate, penalised.adam_beta1, penalised.adam_beta2) == (1e-4, 0.0, 0.9)
    plain = gan_arguments(tmp_path, "hinge", learning_rate=1e-3)
    assert (plain.learning_rate, plain.adam_beta1, plain.weight_decay) == (1e-3, 0.5, 0.0)


@pytest.mark.parametrize("fields", [{"spectral_norm": True}, {}], ids=["spectral_norm", "spectral_weight"])
def test_spectral_limits_leave_weights_unclipped(fields, tmp_path):
    trainer = make(tmp_path, VECTORS | fields, objective="wgan", spectral_weight=0.0 if fields else 0.5)
    trainer.train()
    assert trainer.clip == 0
    norms = logged(trainer, "critic_spectral")
    assert len(norms) == (0 if fields else 4)
    if norms:
        expected = -logged(trainer, "critic_value")[0] + 0.5 * norms[0]
        assert logged(trainer, "critic_loss")[0] == pytest.approx(expected, rel=1e-5)


def test_the_generator_steps_once_for_n_steps_of_the_critic(tmp_path):
    trainer = make(tmp_path, steps=6, n_critic=3, args={"save_strategy": "steps", "save_steps": 1})
    trainer.train()
    models = [NoriaGANModel.from_pretrained(tmp_path / f"checkpoint-{step}") for step in range(1, 7)]
    pairs = list(pairwise(models))
    moved = [not torch.equal(a.generator.main[0].weight, b.generator.main[0].weight) for a, b in pairs]
    assert moved == [False, True, False, False, True]
    assert all(not torch.equal(a.critic.main[0].weight, b.critic.main[0].weight) for a, b in pairs)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    fields = IMAGES | {"num_labels": 3, "spectral_norm": True}
    data = rows((1, 8, 8), labels=3, shift=0.0)
    args = {
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
    }
    settings = {"objective": "wgan", "penalty": "lipschitz", "n_critic": 2, "args": args, "ema_decay": 0.5}
    whole = make(tmp_path / "whole", fields, data, steps=5, **settings)
    whole.train()
    half = make(tmp_path / "half", fields, data, steps=5, **settings)
    torch.rand(7)
    half.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, x in whole.model.state_dict().items():
        assert torch.equal(x, half.model.state_dict()[name]), name
    assert logged(whole, "critic_penalty")[-1] == logged(half, "critic_penalty")[-1]


def test_latents_differ_by_step_turn_batch_and_process(tmp_path):
    trainer = make(tmp_path)
    seeds = [trainer.random("generator").initial_seed(), trainer.random("generator").initial_seed()]
    seeds.append(trainer.random("critic").initial_seed())
    trainer.state.global_step += 1
    seeds.append(trainer.random("generator").initial_seed())
    assert len(set(seeds)) == 4
    again = make(tmp_path)
    assert again.random("generator").initial_seed() == seeds[0]


def test_what_is_saved_is_a_plain_model(tmp_path):
    trainer = make(tmp_path, IMAGES, rows((1, 8, 8)))
    trainer.train()
    trainer.save_model(tmp_path / "model")
    loaded = NoriaGANModel.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.generate_images(2, seed=0), trainer.model.generate_images(2, seed=0))


def test_evaluation_tells_the_critics_loss_on_other_rows(tmp_path):
    trainer = make(tmp_path, eval_dataset=rows(count=20))
    before = weights(trainer.model)
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(2 * math.log(2), abs=0.3)
    assert all(torch.equal(x, before[name]) for name, x in trainer.model.state_dict().items())


def test_bf16_trains(tmp_path):
    trainer = make(tmp_path, IMAGES, rows((1, 8, 8)), objective="hinge", args={"bf16": True})
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))


def test_the_generator_finds_the_data_and_the_critic_is_left_guessing(tmp_path):
    args = {"learning_rate": 2e-3, "per_device_train_batch_size": 64, "logging_steps": 20}
    trainer = make(tmp_path, data=rows(count=512), steps=400, args=args)
    trainer.train()
    samples = trainer.model.generate_images(500, seed=0)
    assert (samples.mean(0) - 2).abs().max() < 0.4
    accuracies = logged(trainer, "critic_accuracy")
    assert 0.4 < sum(accuracies[-5:]) / 5 < 0.75


def test_labels_that_a_model_does_not_read_are_no_hindrance(tmp_path):
    make(tmp_path, data=rows(labels=2), steps=1).train()


def test_nan_in_the_data_stops_the_run_by_step_and_term(tmp_path):
    data = rows()
    data[0]["pixel_values"] = torch.tensor([float("nan"), 0.0])
    with pytest.raises(FloatingPointError, match=r"in step \d+, `critic_loss` is nan"):
        make(tmp_path, data=data, steps=8).train()


@pytest.mark.parametrize(
    ("fields", "data", "message"),
    [
        ({"num_labels": 3}, rows(), r"3 classes: give `labels`"),
        ({"num_labels": 2}, rows(labels=5), r"`labels` must lie in 0\.\.1"),
        ({}, rows((3,)), r"\(b 2\).*\(8, 3\)"),
    ],
)
def test_rows_that_do_not_fit_are_named(fields, data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, VECTORS | fields, data, args={"dataloader_drop_last": True}).train()


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        (VECTORS, {"objective": "wasserstein"}, "unknown objective 'wasserstein'"),
        (VECTORS, {"penalty": "gp"}, "unknown penalty 'gp'.*gradient"),
        (VECTORS, {"penalty": "r1", "penalty_weight": -1.0}, "`penalty_weight`.*-1.0"),
        (VECTORS, {"penalty_weight": 1.0}, r"`penalty_weight` \(1.0\) belongs to a `penalty`"),
        (VECTORS, {"objective": "wgan", "clip": 0.0}, "nothing limits"),
        (VECTORS, {"clip": -0.1}, "`clip`.*-0.1"),
        (VECTORS, {"spectral_weight": -1.0}, "`spectral_weight`.*-1.0"),
        (VECTORS, {"n_critic": 0}, "`n_critic`.*0"),
        (IMAGES | {"num_hidden_layers": 2}, {"penalty": "gradient"}, r"'gradient'.*batch norm.*main\.4"),
    ],
)
def test_settings_that_contradict_one_another_are_named(fields, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, fields, **settings)
