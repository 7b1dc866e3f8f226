"""A tokenizer whose tokens are the characters of a text, stored as a plain `tokenizer.json`."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


def character_tokenizer(
    texts: str | Iterable[str], *, min_count: int = 1, padding_side: str = "left"
) -> PreTrainedTokenizerFast:
    """Builds the tokenizer of all characters that occur at least `min_count` times in `texts`.

    One Unicode code point is one token, line breaks and spaces included; characters outside the vocabulary become
    `<unk>`. Ids 0 to 3 are `<pad>`, `<bos>`, `<eos>`, `<unk>`; the characters follow from the most to the least
    frequent. Encoding puts `<bos>` in front (unless `add_special_tokens=False`), so that a prompt of no characters is
    one token long. `decode(..., skip_special_tokens=True)` gives the text back without a change. The files it saves
    need no noria: `AutoTokenizer.from_pretrained` reads them anywhere.

    Raises ValueError where no character is left, where min_count < 1, or for an unknown padding side.
    """
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    counts: Counter[str] = Counter()
    for text in [texts] if isinstance(texts, str) else texts:
        counts.update(text)
    characters = sorted((c for c, n in counts.items() if n >= min_count), key=lambda c: (-counts[c], c))
    if not characters:
        raise ValueError(f"no character occurs {min_count} times or more in the given text; nothing to build from")
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *characters))}
    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(vocabulary),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
    )


def _backend(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    # A class instead of a dot, which would leave line breaks glued to their neighbours.
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {EOS} $B", special_tokens=[(t, vocabulary[t]) for t in (BOS, EOS)]
    )
    tokenizer.decoder = Fuse()
    return tokenizer
