"""What a position encoding may do: three hooks, the identity by default. Attention calls all three."""

from torch import Tensor, nn

from ..state import Context


class PositionEncoding(nn.Module):
    """Changes nothing; each encoding overrides the hook that it is."""

    def add(self, x: Tensor, context: Context) -> Tensor:
        """Embeddings x (b t d) with their absolute positions."""
        return x

    def rotate(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Queries and keys (b h t d) turned by their positions."""
        return q, k

    def bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor | None:
        """What is added to the scores (b h t s) before the softmax, or None."""
        return None
