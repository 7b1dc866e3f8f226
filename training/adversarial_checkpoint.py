"""What an AdversarialTrainer keeps in a checkpoint beside what transformers' Trainer does."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

CRITIC = "discriminator.safetensors"
AVERAGE = "ema.safetensors"
OPTIMIZER = "critic_optimizer.pt"
SCHEDULER = "critic_scheduler.pt"
EXTRA = "adversarial.json"


def save_adversary(trainer: Any, folder: str) -> None:
    """Writes critic, its optimizer and scheduler, the mean of the weights, and what the trainer's class adds."""
    extra = trainer.extra_state()
    if not trainer.args.should_save:
        return
    path = Path(folder)
    if not trainer.critic_is_part:
        save_model(trainer.critic, str(path / CRITIC))
    if trainer.average is not None:
        save_model(trainer.average, str(path / AVERAGE))
    if trainer.critic_learns:
        torch.save(trainer.critic_optimizer.state_dict(), path / OPTIMIZER)
        torch.save(trainer.critic_scheduler.state_dict(), path / SCHEDULER)
    (path / EXTRA).write_text(json.dumps(extra) + "\n", encoding="utf-8")


def load_adversary(trainer: Any, folder: str) -> None:
    """Takes all of that up again.

    Raises FileNotFoundError where a part is missing: the checkpoint is another trainer's, or had other settings.
    """
    path = Path(folder)
    wanted = [EXTRA, *([OPTIMIZER, SCHEDULER] if trainer.critic_learns else [])]
    wanted += [] if trainer.critic_is_part else [CRITIC]
    wanted += [] if trainer.average is None else [AVERAGE]
    missing = [name for name in wanted if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} cannot be resumed by {type(trainer).__name__}: it has no {missing[0]}.")
    if not trainer.critic_is_part:
        load_model(trainer.critic, path / CRITIC)
    if trainer.average is not None:
        load_model(trainer.average, path / AVERAGE)
    if trainer.critic_learns:
        trainer.critic_optimizer.load_state_dict(torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True))
        trainer.critic_scheduler.load_state_dict(torch.load(path / SCHEDULER, weights_only=True))
    trainer.load_extra_state(json.loads((path / EXTRA).read_text(encoding="utf-8")))
