"""Tang or Song? Fine-tunes an encoder of noria with transformers' Trainer to tell in which dynasty a poem was written.

    python examples/finetune_classification.py                        # a small RoFormer, pretrained for two minutes
    python examples/finetune_classification.py --pretrain-seconds 0   # the same from random weights
    python examples/finetune_classification.py --model FOLDER         # any encoder of noria with its tokenizer

Pretraining reads the embedded classics and, without their labels, the training poems.
"""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from noria import NoriaRoFormerConfig, NoriaRoFormerForMaskedLM
from noria.cli import Parser
from noria.data.tang_vs_song import LABELS, Poem, tang_vs_song
from noria.data.texts import classics
from noria.tokenization.roformer_characters import wordpiece_tokenizer
from noria.tokenization.vocabulary import SPECIAL_TOKENS
from noria.training.budget import Budget
from noria.training.corpus import Blocks
from noria.training.progress import ProgressBar
from noria.training.settings import fast_precision
from noria.training.trainer import BudgetCallback, BudgetTrainer

QUOTED_BASELINE, LENGTH = 0.905, 66  # a row holds [CLS], a poem and [SEP]


def arguments(folder: str, options: Namespace, **fields: object) -> TrainingArguments:
    """What both trainings share: silent, on the CPU, nothing saved on the way."""
    fields |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 10}
    fields |= {"use_cpu": True, "dataloader_pin_memory": False, "bf16": fast_precision() == "bfloat16"}
    return TrainingArguments(folder, seed=options.seed, **fields)


def make_encoder(folder: str, train: Sequence[Poem], options: Namespace) -> None:
    """Makes a small RoFormer, trains it to fill in masked characters, and saves it with its tokenizer in `folder`."""
    texts = [text.text for text in (*classics(), *train)]
    counts = Counter("".join("".join(texts).lower().split()))
    tokens = [*SPECIAL_TOKENS.values(), *sorted(c for c, count in counts.items() if count > 4)]  # others are [UNK]
    tokenizer = wordpiece_tokenizer({token: index for index, token in enumerate(tokens)})
    sizes = {"hidden_size": options.hidden_size, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    config = NoriaRoFormerConfig(initializer_range=0.1, pad_token_id=tokenizer.pad_token_id, **sizes)
    model = NoriaRoFormerForMaskedLM(config)
    print(f"RoFormer with {model.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens in the vocabulary")
    if options.pretrain_seconds:
        budget, fields = Budget(options.pretrain_seconds), {"per_device_train_batch_size": 16, "learning_rate": 2e-3}
        with ProgressBar(budget, 16 * LENGTH) as bar:
            trainer = BudgetTrainer(
                model,
                arguments(folder, options, max_steps=10**9, **fields),  # the budget ends it long before
                train_dataset=Blocks(tokenizer(texts).input_ids, LENGTH, options.seed),
                data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3),
                callbacks=[BudgetCallback(budget, report=bar.report)],
                budget=budget,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def finetune(folder: str | Path, scratch: str, sides: Sequence[Sequence[Poem]], options: Namespace) -> float:
    """Puts a head on the encoder in `folder` and trains both; the accuracy on the test poems after the last epoch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train, test = ([{**tokenizer(poem.text), "labels": poem.label} for poem in side] for side in sides)
    fields = {"num_train_epochs": options.epochs, "per_device_train_batch_size": 32}
    fields["learning_rate"] = options.learning_rate or (3e-5 if options.model else 5e-4)
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS)),
        arguments(scratch, options, eval_strategy="epoch", warmup_steps=0.1, **fields),
        train_dataset=train,
        eval_dataset=test,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda r: {"accuracy": (r.predictions.argmax(-1) == r.label_ids).mean()},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    accuracies = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    print("accuracy after each epoch:", *(f"{accuracy:.3f}" for accuracy in accuracies))
    return accuracies[-1]


def baseline(train: Sequence[Poem], test: Sequence[Poem]) -> str:
    """Logistic regression on TF-IDF of one and two characters, which wants scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        return f"{QUOTED_BASELINE:.3f} (quoted for all poems: scikit-learn is not installed)"
    known, asked = (([poem.text for poem in side], [poem.label for poem in side]) for side in (train, test))
    steps = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), min_df=2), LogisticRegression(C=10, max_iter=1000)
    return f"{make_pipeline(*steps).fit(*known).score(*asked):.3f}"


def run(options: Namespace) -> None:
    """Trains, and prints the accuracy beside what it has to be compared with."""
    least = {"epochs": 1, "hidden_size": 2, "limit": 1, "pretrain_seconds": 0, "learning_rate": 1e-9}
    for name, value in vars(options).items():
        if name in least and value is not None and not value >= least[name]:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least[name]}, got {value}")
    if options.model is not None and not options.model.is_dir():
        raise ValueError(f"--model {options.model} is no folder")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(options.seed)
    train, test = (side[: options.limit] for side in tang_vs_song())
    with TemporaryDirectory() as scratch:
        if options.model is None:
            make_encoder(scratch, train, options)
        accuracy = finetune(options.model or scratch, scratch, (train, test), options)
    larger = max(Counter(poem.label for poem in test).values()) / len(test)
    print(f"\naccuracy on {len(test)} test poems\n  always the larger class  {larger:.3f}")
    print(f"  TF-IDF and regression    {baseline(train, test)}")
    print(f"  this encoder             {accuracy:.3f} ± {(accuracy * (1 - accuracy) / len(test)) ** 0.5:.3f}")


def main(given: Sequence[str] | None = None) -> int:
    parser = Parser(prog="finetune_classification.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="an encoder of noria with its tokenizer")
    parser.add_argument("--pretrain-seconds", type=float, default=120, help="without --model (120)")
    parser.add_argument("--hidden-size", type=int, default=96, help="without --model (96)")
    parser.add_argument("--epochs", type=int, default=4, help="how often the training poems are read (4)")
    parser.add_argument("--learning-rate", type=float, help="of the fine-tuning (5e-4, with --model 3e-5)")
    parser.add_argument("--limit", type=int, default=7000, help="poems to train on, and to test on, at most")
    parser.add_argument("--seed", type=int, default=0)
    try:
        run(parser.parse_args(given))
    except (ValueError, OSError) as error:
        print(f"finetune_classification.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
