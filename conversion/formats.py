"""The upstream projects whose checkpoints can be converted, by name."""

from .bert4keras import BERT4KERAS
from .fast_transformers import FAST_TRANSFORMERS
from .format import Format
from .junnyu import JUNNYU
from .mamba_ssm import MAMBA_SSM
from .minimal_lru import MINIMAL_LRU
from .rwkv import RWKV
from .s4 import S4
from .taming import TAMING
from .torchscale import TORCHSCALE
from .transformers_models import TRANSFORMERS

FORMATS: dict[str, Format] = {
    "bert4keras": BERT4KERAS,
    "fast_transformers": FAST_TRANSFORMERS,
    "junnyu": JUNNYU,
    "minimal_lru": MINIMAL_LRU,
    "s4": S4,
    "mamba_ssm": MAMBA_SSM,
    "rwkv": RWKV,
    "taming": TAMING,
    "torchscale": TORCHSCALE,
    "transformers": TRANSFORMERS,
}


def find_format(name: str) -> Format:
    """The format called `name`; ValueError lists the known ones."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; known are {', '.join(sorted(FORMATS))}")
    return FORMATS[name]
