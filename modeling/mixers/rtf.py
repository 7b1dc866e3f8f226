r"""Rational transfer functions: Parnichkun et al. 2024, State-Free Inference of State-Space Models (arXiv:2405.06147).

    H(z) = (b_1 + b_2 z + ... + b_d z^(d-1)) / (1 + a_1 z + ... + a_d z^d),   K by Fourier transform     section 3
    v_t = u_t - a_1 v_(t-1) - ... - a_d v_(t-d),   y_t = b_1 v_t + ... + b_d v_(t-d+1)      its companion form

State: the last v_t (b h d), the newest first, in float32.  Time: O(t log t) whatever d is, O(d) for a token.
The direct term h_0 u_t is the mixer's D. At first a is 0: the state is the last d inputs, and y a short convolution.
The system is stable where |a_1| + ... + |a_d| < 1, which nothing enforces.
With `kernel_length` L the numerators are stored as b (I - A^L), A the companion matrix, which makes the transform over
L points give the first L taps, as the authors' code trains them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.fft_convolution import fft_convolution
from ..ops.rational_response import rational_response
from ..state import State
from .s4_kernel import ConvolutionKernel


class RationalSystem(NamedTuple):
    """a (h d) and b (directions h d), float64."""

    a: Tensor
    b: Tensor


class RationalKernel(ConvolutionKernel):
    """For a NoriaS4Config with kernel "rtf"."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.width, self.size, self.stored_length = config.hidden_size, config.state_size, config.kernel_length
        self.a = nn.Parameter(torch.empty(config.num_ssm, self.size))
        self.b = nn.Parameter(torch.empty(2 if config.bidirectional else 1, self.width, self.size))

    def initialize(self, std: float) -> None:
        nn.init.zeros_(self.a)
        nn.init.normal_(self.b, std=self.size**-0.5)

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        return (torch.zeros(batch, self.width, self.size, dtype=wide, device=device),)

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.b.dtype, torch.float32)

    def system(self) -> RationalSystem:
        a, b = self.a.double().repeat(self.width // self.a.shape[0], 1), self.b.double()
        if self.stored_length:
            rest = torch.eye(self.size, dtype=a.dtype, device=a.device)
            rest = rest - torch.linalg.matrix_power(companion(a), self.stored_length)
            b = torch.linalg.solve(rest.mT, b[..., None])[..., 0]
        return RationalSystem(a, b)

    def impulse(self, system: RationalSystem, length: int) -> Tensor:
        return rational_response(system.b, system.a, length, self.dtype)

    def recursive(self, system: RationalSystem, length: int, dtype: torch.dtype) -> Tensor:
        """The response (h length) of v to u: 1 / (1 + a_1 z + ...)."""
        return rational_response(torch.ones_like(system.a[:, :1]), system.a, length, dtype)

    def respond(self, system: RationalSystem, state: State, length: int) -> Tensor:
        past, dtype = state[0], state[0].dtype
        forced = fit(forcing(system.a, past), length)
        taps = rational_response(system.b[0], system.a, length, dtype)
        direct = torch.einsum("hkj,bhj->bhk", windows(system.b[0])[:, 1:].to(dtype), past)
        return fft_convolution(forced, taps) + fit(direct, length)

    def absorb(self, system: RationalSystem, u: Tensor) -> State:
        v = fft_convolution(u, self.recursive(system, u.shape[-1], u.dtype))
        return (F.pad(v, (self.size, 0))[..., -self.size :].flip(-1),)

    def decay(self, system: RationalSystem, state: State, count: Tensor, longest: int) -> State:
        past = state[0]
        later = fft_convolution(fit(forcing(system.a, past), longest), self.recursive(system, longest, past.dtype))
        places = self.size + count[:, None] - torch.arange(1, self.size + 1, device=past.device)
        places = places[:, None].expand(-1, self.width, -1)
        return (torch.cat((past.flip(-1), later), dim=-1).gather(-1, places),)

    def step(self, pace: RationalSystem, u: Tensor, state: State) -> tuple[Tensor, State]:
        past, (a, b) = state[0], (x.to(state[0].dtype) for x in (pace.a, pace.b[0]))
        past = torch.cat(((u - (a * past).sum(-1))[..., None], past[..., :-1]), dim=-1)
        return (b * past).sum(-1), (past,)


def companion(a: Tensor) -> Tensor:
    """A (h d d), for which A (v_(t-1), v_(t-2), ...) = (-a_1 v_(t-1) - ..., v_(t-1), ...)."""
    below = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)[:-1]
    return torch.cat((-a[:, None], below.expand(a.shape[0], -1, -1)), dim=1)


def windows(x: Tensor) -> Tensor:
    """x_1 .. x_d (h d) -> (h d+1 d), whose row k is x_(k+1), x_(k+2), ... with zeros after x_d."""
    return F.pad(x, (0, x.shape[-1])).unfold(-1, x.shape[-1], 1)


def forcing(a: Tensor, past: Tensor) -> Tensor:
    """f (b h d): what the past v (b h d) adds to u in the next d tokens, so that v begins from nothing."""
    return -torch.einsum("hkj,bhj->bhk", windows(a)[:, :-1].to(past.dtype), past)


def fit(x: Tensor, length: int) -> Tensor:
    """x (... d) cut or filled with zeros to `length`."""
    return F.pad(x, (0, length))[..., :length]
