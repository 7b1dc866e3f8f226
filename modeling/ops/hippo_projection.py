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
    """The matrices A (n n) and B (n) of the memory at T = `time`; those of the whole past fall as 1/T.

    basis: s (p) float64 -> phi (n p), real or complex, orthogonal under `measure`, s (p) -> w (p), None for 1.
    time_map: s (p) and T () -> the times t(s, T) (p). Both are differentiated by torch.
    nodes, weights: (p) float64, for integrals over the domain of s; see `legendre_nodes`, `laguerre_nodes`.
    now, far: the end at which t = T, and the other one, or None where phi vanishes there.
    periodic: at `far` the series has the mean of u's values at both ends, as Fourier's: solve that for the value.
    Raises ValueError: `now` is not mapped to T, shapes that differ, or functions that are not orthogonal.
    """
    moment, end = nodes.new_tensor(time), nodes.new_tensor([now])
    if nodes.dim() != 1 or nodes.shape != weights.shape:
        raise ValueError(f"nodes and weights must both be (p), not {tuple(nodes.shape)} and {tuple(weights.shape)}")
    if not torch.allclose(time_map(end, moment), moment):
        raise ValueError(f"`now` must be where the time is {time}, but it is {time_map(end, moment).item()}")

    weight = torch.ones_like if measure is None else measure

    def moving(s: Tensor) -> Tensor:
        return _flow(time_map, s, moment) * weight(s) * basis(s).conj()

    norms = _norms(basis(nodes), weights * weight(nodes))
    slope = jvp(moving, (nodes,), (torch.ones_like(nodes),))[1]
    sign = 1.0 if now > nodes.mean() else -1.0
    A, B = -(slope * weights) @ (basis(nodes) / norms).T, sign * moving(end)[:, 0]
    if far is None:
        return A, B
    leak, series = sign * moving(nodes.new_tensor([far])), (basis(nodes.new_tensor([far])) / norms)[:, 0]
    return (A - 2 * leak * series, B + leak[:, 0]) if periodic else (A - leak * series, B)


def _flow(time_map: Callable[[Tensor, Tensor], Tensor], s: Tensor, moment: Tensor) -> Tensor:
    """r (p): how fast s has to move to stay at the same time."""
    along = jvp(lambda x: time_map(x, moment), (s,), (torch.ones_like(s),))[1]
    across = jvp(lambda t: time_map(s, t), (moment,), (torch.ones_like(moment),))[1]
    return across / along


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
