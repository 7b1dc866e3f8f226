"""What Chinese means to the tokenizers of BERT's family: which characters are ideographs, where spaces vanish."""

import re

# The blocks that Google's BERT counts as Chinese, as the inside of a character class.
IDEOGRAPHS = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b73f"
    "\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\U0002f800-\U0002fa1f"
)
# Punctuation that is as wide as an ideograph, and the dashes, quotes and dots that Chinese texts share with others.
WIDE_PUNCTUATION = "\u2014\u2018\u2019\u201c\u201d\u2026\u00b7\u3000-\u303f\ufe30-\ufe4f\uff01-\uff65"
# Spaces between tokens that no reader expects: beside anything Chinese, before closing and after opening marks, and
# inside decimal numbers.
NEEDLESS_SPACES = (
    f"(?<=[{IDEOGRAPHS}{WIDE_PUNCTUATION}]) | (?=[{IDEOGRAPHS}{WIDE_PUNCTUATION}])"
    r"| (?=[,.!?;:)\]}%])|(?<=[(\[{]) |(?<=[0-9] \.) (?=[0-9])"
)

_IDEOGRAPH = re.compile(f"[{IDEOGRAPHS}]")
_WORD = re.compile(f"[{IDEOGRAPHS}]{{2,}}")
_NEEDLESS_SPACES = re.compile(NEEDLESS_SPACES)


def is_ideograph(character: str) -> bool:
    """Whether one character is a Chinese one."""
    return _IDEOGRAPH.match(character) is not None


def is_word(token: str) -> bool:
    """Whether a token is made of two or more Chinese characters and of nothing else."""
    return _WORD.fullmatch(token) is not None


def join(tokens: list[str]) -> str:
    """Tokens as readable text: pieces that begin with `##` go on without a space, and Chinese is written without."""
    return _NEEDLESS_SPACES.sub("", " ".join(tokens).replace(" ##", ""))
