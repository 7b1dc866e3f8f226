"""Relative positions of Transformer-XL: Dai et al. 2019 (arXiv:1901.02860), section 3.3; XLNet (arXiv:1906.08237).

score_ij = (q_i k_j^T + u k_j^T + (q_i + v) (W_R R_(i-j))^T) / sqrt(d)
R_n = [sin(n w), cos(n w)],   w_m = 10000^(-2m/D)

W_R is a matrix of its own beside W_K; u and v (one d for each head) stand where the expansion has p_i W_Q, so that
neither is mapped by W_Q. Distances are not clipped and values know no positions.

The last term has two exact forms, and the one that costs less is taken:
    table      W_R R_n of the n that occur, met by each query and gathered by distance
    rotation   a_i = (q_i + v) W_R turned by i, met by R_j, for sin((i-j)w) = sin(iw) cos(jw) - cos(iw) sin(jw)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..state import Context
from .base import PositionEncoding, distances
from .rotary import geometric, rotation
from .shaw import pick
from .stored import Stored

# How many multiplications of a matrix product take as long as one gathered number.
GATHERING = 256


class TransformerXL(PositionEncoding):
    """One layer's W_R (h d D), u and v (h d). A segment's keys are recalled from the cache."""

    def __init__(self, width: int, heads: int, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.width, self.base = width, float(base)
        self.position_weight = Stored(heads, dim, width)
        self.u = Stored(heads, dim)
        self.v = Stored(heads, dim)

    def bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        content = (k @ self.u()[..., None]).transpose(2, 3)  # (b h 1 s)
        asked = q + self.v()[:, None]
        ends = self.table_ends(q, k, context)
        term = self.by_rotation(asked, context) if ends is None else self.by_table(asked, context, *ends)
        return (content + term) * q.shape[-1] ** -0.5

    def table_ends(self, q: Tensor, k: Tensor, context: Context) -> tuple[int, int] | None:
        """The smallest and the largest distance, or None where the rotation costs less or nothing may be read."""

        def find() -> tuple[int, int] | None:
            heads, new, dim = q.shape[1:]
            keys, inner = k.shape[2], heads * dim
            far = distances(context)
            if torch.compiler.is_compiling() or new < 2 or not far.numel():
                return None
            low, high = int(far.min()), int(far.max())
            table = (high - low + 1) * inner * (self.width + new) + GATHERING * heads * new * keys
            return (low, high) if table < new * self.width * (inner + heads * keys) else None

        return context.once("table ends", find)

    def codes(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (b 1 t (D+1)/2) of positions (b t) times w, float32 at least."""
        frequencies = geometric(self.base, (self.width + 1) // 2, self.width / 2, like.device)
        return rotation(positions, frequencies, torch.promote_types(like.dtype, torch.float32))

    def by_table(self, asked: Tensor, context: Context, low: int, high: int) -> Tensor:
        """asked_i (W_R R_(i-j))^T (b h t s), from asked (b h t d) and distances between `low` and `high`."""

        def compute() -> tuple[Tensor, Tensor]:
            cos, sin = self.codes(torch.arange(low, high + 1, device=asked.device)[None], asked)
            table = torch.cat((sin, cos), dim=-1)[0, 0, :, : self.width].to(asked.dtype)
            return table, (distances(context) - low)[:, None].contiguous()

        table, places = context.once(("table of distances", self.width, self.base, asked.dtype), compute)
        keys = self.position_weight() @ table.T  # (h d n)
        return pick(asked @ keys, places)

    def by_rotation(self, asked: Tensor, context: Context) -> Tensor:
        """The same from asked (b h t d), for any distances."""
        keys = context.key_positions

        def compute() -> tuple[Tensor, Tensor, Tensor]:
            cos, sin = self.codes(context.positions, asked)
            key_cos, key_sin = (cos, sin) if keys is context.positions else self.codes(keys, asked)  # pyright: ignore
            return cos, sin, torch.cat((key_sin, key_cos), dim=-1).transpose(2, 3)

        cos, sin, codes = context.once(("rotation of distances", self.width, self.base, asked.dtype), compute)
        mapped = (asked @ self.position_weight()).to(cos.dtype)
        # An odd width has a sine without its cosine.
        of_sin, of_cos = F.pad(mapped, (0, self.width % 2)).chunk(2, dim=-1)
        turned = torch.cat((of_cos * sin - of_sin * cos, of_sin * sin + of_cos * cos), dim=-1)
        return (turned @ codes).to(asked.dtype)
