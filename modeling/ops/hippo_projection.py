r"""Any basis and any map of time make a HiPPO memory: its matrices, by quadrature.

    c_n(T) = \int_a^b u(t(s, T)) g_n(s) ds,     g_n = conj(\varphi_n) w,     u(t(s, T)) ~ \sum_k c_k d_k(s)

With r = (dt/dT) / (dt/ds), integration by parts gives c' = [u r g_n]_a^b - \int u (r g_n)' ds. At the end where t = T
stands the input; elsewhere u is replaced by its series, which makes a linear equation c' = A c + B u:

    A_nk = -\int (r g_n)' d_k ds  +-  r(far) g_n(far) d_k(far)         B_n = +- r(now) g_n(now)

d_k = \varphi_k / \int |\varphi_k|^2 w is the dual basis of an orthogonal one.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp


def projector(
    basis: Callable[[Tensor], Tensor],
    time_map: Callable[[Tensor, Tensor], Tensor],
    nodes: Tensor,
    weights: Tensor,
    *,
    now: float,
    far: float | None = None,
    measure: Callable[[Tensor], Tensor] | None = None,
    periodic: bool = False,
    time: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The matrices A (n n) and B (n) of the memory at the time T = `time`.

    Args:
        basis: s (p) float64 -> the functions phi (n p), real or complex, orthogonal under `measure`.
        time_map: s (p) and T () -> the times t(s, T) (p). Both are differentiated by torch.
        nodes, weights: (p) float64, which integrate over the domain of s; see `legendre_nodes`, `laguerre_nodes`.
        now: the end of the domain at which t = T.
        far: the other end, or None where phi vanishes there.
        measure: s (p) -> w (p); None for 1.
        periodic: the basis takes at `far` the mean of u's values at both ends, as a Fourier series does: solve that
            for the value at `far`, instead of taking the series for it.
        time: at which A and B are wanted. A map of the whole past, t = s T, has A / T and B / T.

    Raises:
        ValueError: `now` is not mapped to T, nodes and weights differ in shape, or the functions are not orthogonal.
    """
    if nodes.dim() != 1 or nodes.shape != weights.shape:
        raise ValueError(f"nodes and weights must both be (p), not {tuple(nodes.shape)} and {tuple(weights.shape)}")
    moment = nodes.new_tensor(time)

    def weight(s: Tensor) -> Tensor:
        return torch.ones_like(s) if measure is None else measure(s)

    def flow(s: Tensor) -> Tensor:
        """r (p): how fast s has to move to stay at the same time."""
        along = jvp(lambda x: time_map(x, moment), (s,), (torch.ones_like(s),))[1]
        across = jvp(lambda t: time_map(s, t), (moment,), (torch.ones_like(moment),))[1]
        return across / along

    def moving(s: Tensor) -> Tensor:
        return flow(s) * weight(s) * basis(s).conj()

    end = nodes.new_tensor([now])
    if not torch.allclose(time_map(end, moment), moment):
        raise ValueError(f"`now` must be where the time is {time}, but it is {time_map(end, moment).item()}")
    norms = _norms(basis(nodes), weights * weight(nodes))
    slope = jvp(moving, (nodes,), (torch.ones_like(nodes),))[1]
    A = -(slope * weights) @ (basis(nodes) / norms).T
    sign = 1.0 if now > nodes.mean() else -1.0
    B = sign * moving(end)[:, 0]
    if far is not None:
        other = nodes.new_tensor([far])
        leak = sign * moving(other)
        A = A - (2.0 if periodic else 1.0) * leak * (basis(other) / norms)[:, 0]
        B = B + leak[:, 0] if periodic else B
    return A, B


def _norms(values: Tensor, weights: Tensor) -> Tensor:
    """The squares (n 1) of the norms of functions with these values (n p)."""
    gram = (values * weights) @ values.conj().T
    norms = gram.diagonal().real
    off = (gram - torch.diag(gram.diagonal())).abs() / (norms[:, None] * norms).sqrt()
    if off.max() > 1e-6:
        raise ValueError(
            f"the functions of the basis are not orthogonal on these nodes: cosines up to {off.max():.2g}"
        )
    return norms[:, None]
