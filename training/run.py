"""One quickstart run: what it works with, how it trains, and what it writes into its folder."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainingArguments,
    set_seed,
)

from ..data.texts import Record, classics, split
from ..tokenization.characters import character_tokenizer
from .architecture import causal_config
from .budget import Budget
from .corpus import Blocks, encode, held_out_loss, prompt, unigram_baseline
from .folder import write_record
from .progress import ProgressBar
from .report import History, draw
from .settings import Settings
from .trainer import BudgetCallback, BudgetTrainer


@dataclass
class Run:
    """The model of a run with its tokenizer, both parts of the text, and what has been measured so far."""

    settings: Settings
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: list[Record]
    held_out: list[Record]
    history: History
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = Budget(self.settings.seconds, self.settings.steps, elapsed=self.history.seconds)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.budget.spent >= 1

    def fit(self, scratch: Path, checkpoint: Path | None, stop_requested: Callable[[], bool]) -> None:
        """Trains until the budget is spent or a stop is requested; then a checkpoint lies in `scratch`."""
        per_step = self.settings.batch * self.settings.length
        rows = Blocks(encode(self.train, self.tokenizer), self.settings.length, self.settings.seed)
        with ProgressBar(self.budget, per_step) as bar:
            trainer = BudgetTrainer(
                self.model,
                training_arguments(self.settings, scratch),
                train_dataset=rows,
                callbacks=[BudgetCallback(self.budget, stop_requested, bar.report)],
                budget=self.budget,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        # Half precision is wrapped around the model's forward; measuring and writing happen in the precision it keeps.
        trainer.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.model.config.use_cache = True  # the Trainer switches it off, and config.json would keep that
        self.history.steps, self.history.seconds = self.budget.step, self.budget.elapsed
        self.history.tokens_per_second = self.budget.step * per_step / self.budget.elapsed
        self.history.curve = [(e["seconds"], e["loss"]) for e in trainer.state.log_history if "loss" in e]
        self.history.after = held_out_loss(self.model, self.tokenizer, self.held_out)

    def save(self, folder: Path) -> bool:
        """Writes model, tokenizer, history, chart, and the record by which a later run knows the folder.

        False where there is no chart, since matplotlib is not installed.
        """
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.history.save(folder / "history.json")
        write_record(folder, asdict(self.settings), self.finished, asdict(self.history))
        return draw(self.history, folder / "loss.png")


def prepare(settings: Settings, history: History | None = None) -> Run:
    """A fresh model under `settings` and everything around it; `history` is that of the run to go on from."""
    records = classics()
    train, held_out = split(records)
    tokenizer = character_tokenizer(prompt(record.genre) + record.text for record in records)
    config = causal_config(
        settings.architecture,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    set_seed(settings.seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.update(do_sample=True, temperature=0.8, top_k=40, max_new_tokens=96)
    if history is None:
        before = held_out_loss(model, tokenizer, held_out)
        history = History(settings.architecture, unigram_baseline(train, held_out), before)
    return Run(settings, model, tokenizer, train, held_out, history)


def training_arguments(settings: Settings, scratch: Path) -> TrainingArguments:
    """The Trainer's arguments: on the CPU, silent, saving only when it is told to."""
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=settings.steps or 10**9,  # the budget ends a timed run long before
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        adam_beta2=0.95,
        weight_decay=0.1,
        optim="adamw_torch_fused",
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=settings.precision == "bfloat16",
        dataloader_pin_memory=False,
        seed=settings.seed,
    )
