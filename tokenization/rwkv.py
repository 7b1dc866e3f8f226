"""The tokenizers of RWKV checkpoints, from the vocabulary files that are published with them."""

from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerFast

from .rwkv_world import NoriaRWKVTokenizer

Kind = Literal["world", "20B"]

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"


def write_tokenizer(vocab_file: Path, folder: Path) -> Kind:
    """Write the tokenizer of an RWKV into `folder`; returns its kind.

    vocab_file: `20B_tokenizer.json` of the RWKV-4 that were trained on the Pile, which is GPT-NeoX's: kept as it is,
    it loads without noria; or `rwkv_vocab_v20230424.txt` of all World models: written with the name of
    NoriaRWKVTokenizer. folder: made where it is missing. What the file holds decides, not its name.

    Raises ValueError for a file that is neither, OSError for paths.
    """
    vocab_file, folder = Path(vocab_file), Path(folder)
    if not is_json(vocab_file):
        NoriaRWKVTokenizer(vocab_file).save_pretrained(folder)
        return "world"
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(vocab_file), padding_side="left")
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{vocab_file} is not a tokenizer.json: {error}") from None
    known = tokenizer.get_vocab()
    if END_OF_TEXT not in known:
        raise ValueError(f"{vocab_file} has no token {END_OF_TEXT}: it is not the tokenizer of an RWKV.")
    padding = PADDING if PADDING in known else END_OF_TEXT
    tokenizer.add_special_tokens({"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": padding})
    tokenizer.save_pretrained(folder)
    return "20B"


def is_json(path: Path) -> bool:
    """Whether a file begins as a JSON object does; no line of a World vocabulary begins so."""
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"{")
