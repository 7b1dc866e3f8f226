"""Adversarial training: alternation, accumulation, resuming to the bit, two processes as one, and what stops it."""

import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from noria import NoriaVQGANConfig, NoriaVQGANModel
from noria.modeling.image.patch_discriminator import PatchDiscriminator
from noria.training.adversarial import AdversarialTrainer
from noria.training.adversarial_schedule import AdversarialSchedule
from noria.training.vqgan_trainer import VQGANTrainer, vqgan_arguments


@pytest.fixture(scope="module", autouse=True)
def imported_objects_are_not_searched():
    """The Trainer has garbage collected whenever it begins, which takes longer than training here."""
    gc.freeze()
    yield
    gc.unfreeze()


def tiny_model(**changes):
    sizes = {"vocab_size": 16, "hidden_size": 8, "channel_multipliers": [1, 2], "num_hidden_layers": 1}
    sizes |= {"attention_resolutions": [], "image_size": 8, "latent_channels": 4, "code_size": 4, "norm_num_groups": 4}
    torch.manual_seed(1)
    return NoriaVQGANModel(NoriaVQGANConfig(**sizes | changes))


def images(count, channels=3):
    draws = torch.Generator().manual_seed(5)
    return [{"pixel_values": torch.rand(channels, 8, 8, generator=draws) * 2 - 1} for _ in range(count)]


def arguments(folder, **changes):
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 2}
    settings |= {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "learning_rate": 1e-2}
    return vqgan_arguments(folder, **settings | changes)


def make_trainer(folder, model=None, rows=18, norm="batch", start=1, warmup=1, args=None, **settings):
    """A tiny VQGAN and its trainer, with whose discriminator everything begins in the second step."""
    model = model or tiny_model()
    if "discriminator" not in settings:
        settings["discriminator"] = PatchDiscriminator(hidden_size=4, num_hidden_layers=1, norm=norm)
    settings = {"perceptual": "random_features", "train_dataset": images(rows)} | settings
    schedule = AdversarialSchedule(start, warmup)
    return VQGANTrainer(model, arguments(folder, **args or {}), schedule=schedule, **settings)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def same(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# Adam's first steps are signs of gradients: where one should vanish, the order of a sum decides.
SGD = {"optim": "sgd", "learning_rate": 0.1}
RUNS = {
    "plain": {},
    "accumulated": {"args": {"gradient_accumulation_steps": 2}},
    "bf16": {"args": {"bf16": True}},
    "averaged": {"ema_decay": 0.5},
    "several epochs": {"rows": 6, "args": {"per_device_train_batch_size": 2}},
    "checkpointed": {"args": {"gradient_checkpointing": True}},
    "clipped": {"args": {"max_grad_norm": 0.1, "lr_scheduler_type": "cosine"}, "critic_max_grad_norm": 0.2},
    "penalty": {"norm": "none", "losses": {"penalty": "gradient", "objective": "wgan", "delta": 1e-6}},
    "dropout and plateau": {"start": "plateau", "changes": {"dropout": 0.3}},
    "running means": {"changes": {"quantizer": "ema", "revive_after": 2}},
    "gumbel": {"changes": {"quantizer": "gumbel"}, "temperature": lambda step: 1 / (1 + step)},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_in_the_same_weights(name, tmp_path):
    settings = dict(RUNS[name])
    changes = settings.pop("changes", {})

    def run(resume=None):
        torch.manual_seed(3)
        trainer = make_trainer(tmp_path, tiny_model(**changes), **settings)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run()
    resumed = run(str(tmp_path / "checkpoint-2"))
    assert same(whole.model, resumed.model)
    assert same(whole.critic, resumed.critic)
    assert whole.average is None or same(whole.average, resumed.average)
    for mine, other in ((whole.optimizer, resumed.optimizer), (whole.critic_optimizer, resumed.critic_optimizer)):
        states = (mine.state_dict()["state"], other.state_dict()["state"])
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(a["exp_avg"], states[1][key]["exp_avg"]) for key, a in states[0].items())
    for term in ("loss", "critic_loss", "d_weight", "train_codebook_perplexity"):
        last = logged(resumed, term)
        assert last == logged(whole, term)[-len(last) :] or not last
    assert not same(whole.model, tiny_model(**changes))


def test_every_term_is_logged(tmp_path):
    trainer = make_trainer(tmp_path, args={"max_grad_norm": 1.0})
    trainer.train()
    for term in ("loss", "reconstruction_loss", "pixel_loss", "perceptual_loss", "quantizer_loss", "perplexity"):
        assert len(logged(trainer, term)) == 4
    for term in ("adversarial_loss", "d_weight", "critic_loss", "critic_accuracy", "critic_grad_norm"):
        assert len(logged(trainer, term)) == 3, f"{term} begins with the discriminator, in the second step"
    assert logged(trainer, "adversarial_factor") == [0.5, 1.0, 1.0]
    assert all(0 <= share <= 1 for share in logged(trainer, "critic_accuracy"))
    rates = [logged(trainer, name) for name in ("learning_rate", "critic_learning_rate")]
    assert rates[0] == rates[1] == [1e-2] * 4


def test_the_discriminator_rests_before_its_start(tmp_path):
    trainer = make_trainer(tmp_path, start=4)
    before = {name: tensor.clone() for name, tensor in trainer.critic.named_parameters()}
    trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.critic.named_parameters())
    assert not same(trainer.model, tiny_model())


@pytest.mark.parametrize("rows", [16, 14])
def test_accumulated_batches_weigh_as_one(rows, tmp_path):
    """With 14 rows the last step has batches of 4 and 2: together they are what one batch of 6 is."""
    weights = []
    for batch, steps in ((8, 1), (4, 2)):
        args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 2} | SGD
        trainer = make_trainer(
            tmp_path,
            norm="none",
            start=0,
            warmup=0,
            train_dataset=images(rows),
            args=args,
            losses={"adaptive": False, "discriminator_weight": 0.1},
        )
        trainer.train()
        weights.append([*trainer.model.state_dict().values(), *trainer.critic.state_dict().values()])
    assert max((one - many).abs().max().item() for one, many in zip(*weights, strict=True)) < 2e-5


class Toy(AdversarialTrainer):
    """A reconstruction by one linear map and a critic that is linear too; notes whose turn it was."""

    turns = ""

    def generator_losses(self, batch):
        self.turns += "g"
        fake = self.model.post_quantizer(batch["pixel_values"].new_ones(2, 4, 1, 1))
        assert not any(parameter.requires_grad for parameter in self.critic.parameters())
        return {"loss": self.critic(fake.mean((2, 3))).mean() + fake.square().mean()}

    def critic_losses(self, batch):
        self.turns += "c"
        assert not any(parameter.requires_grad for parameter in self.generator_parameters)
        return {"loss": self.critic(torch.ones(2, 4)).mean()}

    def after_critic_step(self):
        self.turns += "."

    def after_step(self):
        self.turns += "|"


def toy(folder, n_critic=1, **args):
    return Toy(
        tiny_model(),
        arguments(folder, save_strategy="no", **args),
        critic=spectral_norm(nn.Linear(4, 1)),
        train_dataset=images(16),
        n_critic=n_critic,
    )


@pytest.mark.parametrize(
    ("n_critic", "args", "turns"),
    [
        (1, {}, "gc.|gc.|gc.|gc.|"),
        (3, {}, "c.|c.|gc.|c.|"),
        (2, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, "cc.|ggcc.|cc.|ggcc.|"),
    ],
)
def test_the_networks_take_turns(n_critic, args, turns, tmp_path):
    trainer = toy(tmp_path, n_critic, **args)
    trainer.train()
    assert trainer.turns == turns
    assert trainer.critic.training
    assert all(parameter.grad is None for parameter in trainer.critic.parameters())


def test_a_generator_that_sits_out_does_not_change(tmp_path):
    trainer = toy(tmp_path, 5)
    trainer.train()
    assert same(trainer.model, tiny_model())


def poisoned(trainer, step, name):
    """Lets the model's decoder give what is not finite in `step`, or the discriminator."""
    module = trainer.critic if name == "critic" else trainer.model.decoder

    def poison(module, inputs, output):
        wrong = trainer.state.global_step + 1 == step and trainer.is_in_train
        return output * float("nan") if wrong else output

    module.register_forward_hook(poison)


@pytest.mark.parametrize(
    ("name", "step", "term"),
    [("decoder", 3, "loss"), ("critic", 3, "loss"), ("critic", 4, "loss"), ("decoder", 1, "loss")],
)
def test_what_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(name, step, term, tmp_path):
    trainer = make_trainer(tmp_path, start=0)
    poisoned(trainer, step, name)
    with pytest.raises(FloatingPointError, match=rf"step {step}, `{term}` is nan") as stopped:
        trainer.train()
    if step == 1:
        assert "no checkpoint" in str(stopped.value)
        return
    assert "checkpoint-2" in str(stopped.value)
    assert not (tmp_path / "checkpoint-4").exists()
    kept = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.last_layer.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"step 1, `grad_norm` is (nan|inf)"):
        trainer.train()


def test_checkpoints_have_the_discriminator_and_a_saved_model_has_not(tmp_path):
    trainer = make_trainer(tmp_path / "run", ema_decay=0.9)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    checkpoint = {path.name for path in (tmp_path / "run" / "checkpoint-4").iterdir()}
    assert {"discriminator.safetensors", "ema.safetensors", "model.safetensors", "critic_optimizer.pt"} <= checkpoint
    saved = {path.name for path in (tmp_path / "model").iterdir()}
    assert saved == {"config.json", "model.safetensors", "training_args.bin"}
    reloaded = NoriaVQGANModel.from_pretrained(tmp_path / "model")
    assert same(reloaded, trainer.average.module)
    assert not same(reloaded, trainer.model)
    assert same(NoriaVQGANModel.from_pretrained(tmp_path / "run" / "checkpoint-4"), trainer.model)


def test_a_checkpoint_without_the_discriminator_is_refused(tmp_path):
    make_trainer(tmp_path).train()
    (tmp_path / "checkpoint-2" / "discriminator.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"discriminator\.safetensors"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_evaluation_tells_quality_and_use_of_the_codebook(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=images(7), args={"per_device_eval_batch_size": 3})
    measures = trainer.evaluate()
    model = trainer.model.eval()
    pixels = torch.stack([row["pixel_values"] for row in images(7)])
    with torch.no_grad():
        output = model(pixels)
    shares = output.codes.flatten().bincount(minlength=16) / output.codes.numel()
    assert measures["eval_codebook_usage"] == (shares > 0).double().mean()
    assert measures["eval_codebook_perplexity"] == pytest.approx(torch.special.entr(shares).sum().exp().item(), 1e-4)
    assert measures["eval_pixel_loss"] == pytest.approx((output.reconstruction - pixels).abs().mean().item(), 1e-4)
    errors = (output.reconstruction.clamp(-1, 1) - pixels).square().mean((1, 2, 3))
    assert measures["eval_psnr"] == pytest.approx((10 * torch.log10(4 / errors)).mean().item(), 1e-4)
    assert measures["eval_perceptual_loss"] > 0


def test_the_use_of_the_codebook_is_logged_for_whole_epochs(tmp_path):
    trainer = make_trainer(tmp_path, rows=8, args={"max_steps": -1, "num_train_epochs": 3})
    trainer.train()
    epochs = [entry["epoch"] for entry in trainer.state.log_history if "train_codebook_usage" in entry]
    assert epochs == [1.0, 2.0, 3.0]


def test_training_makes_reconstructions_better(tmp_path):
    rows = images(8)
    args = {"max_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 5e-3, "save_strategy": "no"}
    trainer = make_trainer(tmp_path, start=15, train_dataset=rows, eval_dataset=rows, args=args)
    before = trainer.evaluate()["eval_pixel_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_pixel_loss"] < 0.9 * before


def test_segmentation_is_trained_without_a_discriminator(tmp_path):
    model = tiny_model(task="segmentation", num_channels=5)
    labels = [{"pixel_values": (row["pixel_values"] > 0).float()} for row in images(16, 5)]
    settings = {"perceptual": "none", "train_dataset": labels, "eval_dataset": labels[:5], "discriminator": "default"}
    trainer = make_trainer(tmp_path, model, **settings)
    trainer.train()
    assert not logged(trainer, "critic_loss")
    assert "eval_reconstruction_loss" in trainer.evaluate()
    assert not (tmp_path / "checkpoint-2" / "discriminator.safetensors").exists()
    resumed = make_trainer(tmp_path, tiny_model(task="segmentation", num_channels=5), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(trainer.model, resumed.model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_critic": 0}, "n_critic"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"args": {"fp16": True}}, "bf16"),
        ({"args": {"torch_compile": True}}, "compile"),
        ({"temperature": lambda step: 1.0}, "gumbel"),
        ({"losses": {"objective": "wgan"}}, "penalty"),
        ({"losses": {"objective": "cheap"}}, "cheap"),
        ({"model": tiny_model(task="segmentation")}, "segmentation"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        make_trainer(tmp_path, **settings)


@pytest.mark.parametrize(("side", "layers"), [(256, 3), (32, 3), (16, 2), (8, 1)])
def test_the_default_discriminator_fits_the_images(side, layers, tmp_path):
    model = tiny_model(image_size=side)
    trainer = VQGANTrainer(model, arguments(tmp_path), perceptual="none")
    assert trainer.critic.num_hidden_layers == layers
    assert trainer.critic(torch.zeros(2, 3, side, side)).numel() >= 2


def test_a_discriminator_too_deep_for_the_images_is_refused_at_once(tmp_path):
    trainer = make_trainer(tmp_path, start=3, discriminator=PatchDiscriminator(hidden_size=4, num_hidden_layers=3))
    with pytest.raises(ValueError, match="24 pixels"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_perceptual_loss_must_be_chosen(tmp_path):
    with pytest.raises(TypeError, match="perceptual"):
        VQGANTrainer(tiny_model(), arguments(tmp_path))


# What processes that work together compute as one does, and what they can at least go on with to the bit.
EXACT = {"vq": {}, "ema": {"quantizer": "ema"}}
NOISY = {"noisy": {"quantizer": "ema", "revive_after": 2, "dropout": 0.2}}


def worker(folder, batch):
    """What each process of a distributed run does: three steps of each kind, the last of them once more."""
    for name, changes in (EXACT | NOISY).items():
        args = {"per_device_train_batch_size": batch, "max_steps": 3, "save_steps": 1, "bf16": name in NOISY} | SGD
        args |= {"per_device_eval_batch_size": batch}
        settings = {"norm": "batch" if name in NOISY else "none", "eval_dataset": images(5), "start": 0, "args": args}
        settings |= {"rows": 12, "ema_decay": 0.5}

        def begun(changes=changes, settings=settings, path=folder / name):
            model = tiny_model(**changes)
            return make_trainer(path, model, **settings)

        trainer, resumed = begun(), begun()
        trainer.train()
        told = trainer.evaluate()
        if trainer.is_world_process_zero():
            told |= {
                term: logged(trainer, term) for term in ("loss", "d_weight", "critic_loss", "train_codebook_usage")
            }
            (folder / name / "told.json").write_text(json.dumps(told), encoding="utf-8")
        resumed.train(resume_from_checkpoint=str(folder / name / "checkpoint-2"))
        for part in ("model", "critic", "average"):
            assert same(getattr(trainer, part), getattr(resumed, part)), f"{name}: {part}"


def launch(folder, processes, batch):
    """Runs `worker` in so many processes, which talk over the loopback device alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    place |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), str(batch)]
    running = []
    for rank in range(processes):
        environment = os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
    for process in running:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors.decode()[-2000:]


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    worker(tmp_path / "one", 4)
    launch(tmp_path / "two", 2, 2)
    for name in EXACT:
        one, two = (tmp_path / processes / name for processes in ("one", "two"))
        for part in ("model", "discriminator", "ema"):
            mine, other = (load_file(path / "checkpoint-3" / f"{part}.safetensors") for path in (one, two))
            assert mine.keys() == other.keys()
            assert max((mine[key].double() - other[key].double()).abs().max().item() for key in mine) < 1e-5
        told, theirs = (json.loads((path / "told.json").read_text(encoding="utf-8")) for path in (one, two))
        of_evaluation = [f"eval_{term}" for term in ("codebook_usage", "codebook_perplexity", "psnr", "pixel_loss")]
        for term in ("loss", "d_weight", "critic_loss", "train_codebook_usage", *of_evaluation):
            assert theirs[term] == pytest.approx(told[term], rel=1e-4)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), int(sys.argv[2]))
