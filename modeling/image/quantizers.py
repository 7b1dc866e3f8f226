"""The quantizers that a configuration names."""

from .ema import MeanQuantizer
from .fsq import RoundingQuantizer
from .gumbel import GumbelQuantizer
from .quantizer import Quantizer
from .vq import VectorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "ema": MeanQuantizer,
    "gumbel": GumbelQuantizer,
    "fsq": RoundingQuantizer,
}
