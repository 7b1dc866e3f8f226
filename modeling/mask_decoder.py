"""Enhanced mask decoder: He et al. 2021, DeBERTa (arXiv:2006.03654), section 3.2 and appendix A.2.

I_0 = H + p,   I_n = block(I_(n-1), H),   n = 1, 2

H are the encoder's hidden states, which know relative positions alone; the absolute ones p enter here, as late as they
can. Queries come from I, keys and values from H, and both applications share the weights of one block.
"""

from typing import Any

from torch import Tensor, nn

from .block import PostNormBlock
from .position.tupe import check_positions
from .state import Context

APPLICATIONS = 2


class EnhancedMaskDecoder(nn.Module):
    """What the masked language model's head reads (b t d), from the encoder's hidden states (b t d), which stay.

    block: one more of the encoder's blocks, with softmax attention. Raises ValueError for another attention, and for
    positions beyond `max_position_embeddings`.
    """

    def __init__(self, config: Any, block: PostNormBlock) -> None:
        super().__init__()
        if config.attention != "softmax":
            raise ValueError(
                f"`enhanced_mask_decoder` asks one sequence about another, which attention={config.attention!r} "
                "does not: set attention='softmax'."
            )
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.block = block

    def forward(self, x: Tensor, context: Context) -> Tensor:
        length = self.embed_positions.num_embeddings
        check_positions(context, length)
        queries = x + self.embed_positions(context.positions.clamp(0, length - 1))
        for _ in range(APPLICATIONS):
            queries = self.apply_block(x, context, queries)
        return queries

    def apply_block(self, x: Tensor, context: Context, queries: Tensor) -> Tensor:
        block = self.block
        y, _ = block.mixer(x, context, None, queries)
        y = block.mixer_norm(block.residual(queries, y))
        return block.mlp_norm(block.residual(y, block.mlp(y)))
