"""RoFormer-Sim: one model that tells how alike sentences are, and writes sentences that are like a given one.

    noria convert bert4keras chinese_roformer-sim-char_L-12_H-768_A-12.zip roformer-sim
    python examples/similarity.py roformer-sim
    python examples/similarity.py roformer-sim 今天天气真好 今日天氣不錯 怎么开通网银

The first sentence is also rewritten: candidates are sampled, and those most like it are shown. Without a model a tiny
one with random weights is made, so that the script runs; its figures mean nothing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging

from noria import NoriaRoFormerConfig, NoriaRoFormerForCausalLM
from noria.cli import Parser
from noria.tokenization.roformer_characters import wordpiece_tokenizer
from noria.tokenization.vocabulary import SPECIAL_TOKENS

SENTENCES = ("今天天气真好", "今天的天气不错", "明天会下雨吗", "怎么开通网上银行", "网银如何开通")


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The converted model and its tokenizer. Raises ValueError where the model is no RoFormer-Sim."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    if config.model_type != "noria_roformer" or not config.unilm or config.pooler == "none":
        raise ValueError(f"{folder} holds no RoFormer-Sim: that is a noria_roformer with unilm=True and a pooler")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def make_tiny(sentences: Sequence[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Sim of random weights that knows the characters of the sentences and nothing else."""
    tokens = [*SPECIAL_TOKENS.values(), *sorted(set("".join(sentences).lower()))]
    tokenizer = wordpiece_tokenizer({token: index for index, token in enumerate(tokens)})
    config = NoriaRoFormerConfig(
        vocab_size=len(tokens), hidden_size=64, num_hidden_layers=2, unilm=True, pooler="linear", initializer_range=0.2
    )
    return NoriaRoFormerForCausalLM(config).eval(), tokenizer


@torch.inference_mode()
def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> torch.Tensor:
    """Unit vectors (b d): their products are the cosines of the sentences."""
    return model.encode(**tokenizer(list(sentences), padding=True, return_tensors="pt"))


def similar(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str, candidates: int, shown: int
) -> list[tuple[float, str]]:
    """The `shown` most alike of `candidates` sampled sentences, best first, with their cosines."""
    prompt = tokenizer(sentence, return_tensors="pt")
    written = model.generate(
        **prompt,
        do_sample=True,
        top_k=0,
        top_p=0.95,
        num_return_sequences=candidates,
        max_new_tokens=2 * len(sentence) + 8,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(written[:, prompt.input_ids.shape[1] :], skip_special_tokens=True)
    new = sorted({text for text in texts if text.strip()} - {sentence})
    if not new:
        return []
    vectors = embed(model, tokenizer, [sentence, *new])
    return sorted(zip((vectors[1:] @ vectors[0]).tolist(), new, strict=True), reverse=True)[:shown]


def table(vectors: torch.Tensor, sentences: Sequence[str]) -> str:
    """The cosines of all pairs; the columns are numbered as the rows are."""
    numbers = range(1, len(sentences) + 1)
    lines = ["".join(f"{number:>8}" for number in numbers)]
    for number, row, sentence in zip(numbers, (vectors @ vectors.T).tolist(), sentences, strict=True):
        lines.append("".join(f"{value:8.3f}" for value in row) + f"  {number} {sentence}")
    return "\n".join(lines)


def run(model: Path | None, sentences: Sequence[str], candidates: int, shown: int, seed: int) -> None:
    """Prints the table, then what the model writes."""
    if len(sentences) < 2 or not all(sentence.strip() for sentence in sentences):
        raise ValueError("give at least two sentences, none of them empty")
    if candidates < 1 or shown < 1:
        raise ValueError(f"--candidates and --shown must be at least 1, got {candidates} and {shown}")
    if model is not None and not model.is_dir():
        raise ValueError(
            f"there is no folder {model}; convert a checkpoint first: noria convert bert4keras ... {model}"
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(seed)
    if model is None:
        print("no model was given: a tiny one with random weights stands in, and its figures mean nothing\n")
    network, tokenizer = make_tiny(sentences) if model is None else load(model)
    print(table(embed(network, tokenizer, sentences), sentences))
    print(f"\nlike {sentences[0]}, the best of {candidates} samples:")
    for cosine, text in similar(network, tokenizer, sentences[0], candidates, shown):
        print(f"{cosine:8.3f}  {text}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="similarity.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, help="folder of a converted RoFormer-Sim")
    parser.add_argument("sentences", nargs="*", default=list(SENTENCES), help="at least two sentences")
    parser.add_argument("--candidates", type=int, default=100, help="how many sentences to sample (100)")
    parser.add_argument("--shown", type=int, default=10, help="how many of them to show (10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (0)")
    try:
        run(**vars(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        print(f"similarity.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
