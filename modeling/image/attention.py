"""Attention over all places of a map, in one head as wide as the map.

full    x + W_o softmax(q k^T / sqrt(c)) v      of the normed x; VQGAN's
linear  W_o (softmax_places(k)^T v) q           no norm, no shortcut; latent diffusion's `attn_type: linear`
"""

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ...configuration.vqgan import NoriaVQGANConfig
from .residual import make_norm


class AttentionBlock(nn.Module):
    """x (b c h w) -> the same shape; every place attends to all of them."""

    def __init__(self, width: int, config: NoriaVQGANConfig) -> None:
        super().__init__()
        self.norm = make_norm(width, config)
        self.q, self.k, self.v = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (part(y).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        y = scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj_out(y.reshape(x.shape))


class LinearBlock(nn.Module):
    """x (b c h w) -> the same shape, at a cost linear in the number of places."""

    def __init__(self, width: int, config: NoriaVQGANConfig) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.to_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).flatten(2).chunk(3, dim=1)
        memory = k.softmax(-1) @ v.transpose(1, 2)
        return self.to_out((memory.transpose(1, 2) @ q).reshape(x.shape))


ATTENTIONS: dict[str, type[nn.Module]] = {"full": AttentionBlock, "linear": LinearBlock, "none": nn.Identity}
