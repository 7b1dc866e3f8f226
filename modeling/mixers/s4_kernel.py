"""What the state-space mixer asks of its kernel: one linear time-invariant system for each channel, in three forms
(Gu et al. 2021, arXiv:2111.00396, eq. 3 to 5).

    s_t = A s_(t-1) + B u_t,   y_t = Re(C s_t)           recurrence: y_t includes u_t
    K_k = Re(C A^k B),         y = K * u                 convolution, from an empty state
    y_k = Re(C A^(k+1) s)                                what an initial state s adds to the k-th output

`StateSpaceKernel` is the contract; a kernel whose channels mix (S5) implements it alone. `ConvolutionKernel` fulfils
it for systems of one channel each, with padding anywhere, packed sequences and both directions: a subclass brings
`system` and the five methods below it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.alignment import from_left, take, to_left, to_right
from ..ops.dispatch import choose_form, is_tracing_graph
from ..ops.fft_convolution import fft_convolution
from ..ops.held import held
from ..ops.segment_convolution import segment_convolution
from ..state import Context, State


class StateSpaceKernel(nn.Module):
    """u (b t h), context, state -> y (b t h), state; without the direct term D u, which the mixer adds.

    Built from a config alone; parameters are drawn in `initialize(std)`. Where `config.bidirectional` holds and
    `context.causal` does not, y also has what follows each token, run from the end and without u_t itself.
    """

    def __init__(self, config) -> None:
        super().__init__()

    def initialize(self, std: float) -> None:
        """Draw the parameters, those that were loaded excepted."""
        raise TypeError(f"{type(self).__name__} does not say how its parameters are drawn")

    def initial_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        """The state before any token: batch-first real tensors, float32 at least."""
        raise TypeError(f"{type(self).__name__} does not say what its state is")

    def forward(self, u: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        raise TypeError(f"{type(self).__name__} does not say how it runs")


class ConvolutionKernel(StateSpaceKernel):
    """A kernel with one system for each of h channels; u and y are (b h t) here, in float32 at least.

    recurrent: False where the response depends on the length of the whole text, so that no token can be added to it.
    """

    recurrent = True

    def __init__(self, config) -> None:
        super().__init__(config)
        self.longest = config.max_kernel_length

    def system(self) -> Any:
        """The discrete system, computed from the parameters once a call and handed to the methods below."""
        raise TypeError(f"{type(self).__name__} does not say what its system is")

    def impulse(self, system: Any, length: int) -> Tensor:
        """K (1 h length), or (2 h length) for a bidirectional config, the second for the way back."""
        raise TypeError(f"{type(self).__name__} does not say what its impulse response is")

    def respond(self, system: Any, state: State, length: int) -> Tensor:
        """What the state adds to the first `length` outputs, (b h length)."""
        raise TypeError(f"{type(self).__name__} does not say how its state is read")

    def absorb(self, system: Any, u: Tensor) -> State:
        """The state after u (b h t) from an empty state."""
        raise TypeError(f"{type(self).__name__} does not say how inputs reach its state")

    def decay(self, system: Any, state: State, count: Tensor, longest: int) -> State:
        """The state after count (b) tokens that are zero; no count exceeds `longest`."""
        raise TypeError(f"{type(self).__name__} does not say how its state fades")

    def pace(self) -> Any:
        """What a step needs of the system, computed once for many tokens."""
        return self.system()

    def step(self, pace: Any, u: Tensor, state: State) -> tuple[Tensor, State]:
        """One token u (b h) -> y (b h) and the state after it, by the recurrence."""
        raise TypeError(f"{type(self).__name__} does not say how it steps")

    def forward(self, u: Tensor, context: Context, state: State = None) -> tuple[Tensor, State]:
        form = choose_form(u.device, u.shape[1])
        wide = u.to(torch.promote_types(u.dtype, torch.float32)).transpose(1, 2)
        if context.causal and form in ("step", "sequential") and (self.recurrent or state is not None):
            y, state = self.walk(wide, context, state)
        else:
            system = self.system()
            y = self.convolve(system, wide, context, state)
            state = self.carry(system, wide, context, state) if context.keep_state else None
        return y.transpose(1, 2).to(u.dtype), state

    def walk(self, u: Tensor, context: Context, state: State) -> tuple[Tensor, State]:
        """The recurrence, token by token."""
        pace, segments = held(self, self.pace), context.segments
        begins = None if segments is None else segments != F.pad(segments, (1, 0))[:, :-1]
        empty = state if state is not None and begins is None else self.initial_state(u.shape[0], u.dtype, u.device)
        state = empty if state is None else state
        outputs = []
        for t in range(u.shape[2]):
            before = state if begins is None else choose(begins[:, t], empty, state)
            y, after = self.step(pace, u[:, :, t], before)
            state = after if context.mask is None else choose(context.mask[:, t], after, before)
            outputs.append(y)
        return torch.stack(outputs, 2), state

    def convolve(self, system: Any, u: Tensor, context: Context, state: State) -> Tensor:
        """All tokens at once; padding is taken out first, so that the others stand side by side."""
        mask, segments, length = context.mask, context.segments, u.shape[2]
        if mask is not None:
            order = to_left(mask)
            u = take(u, order) * mask.gather(1, order)[:, None]
            segments = None if segments is None else segments.gather(1, order)
        kernel = self.response(system, length, state is None)
        back = None if context.causal or len(kernel) < 2 else kernel[1]
        if segments is None:
            y = fft_convolution(u, kernel[0], back)
        else:
            y = segment_convolution(u, kernel[0], segments)
            if back is not None:
                late = F.pad(back[:, :-1], (1, 0))
                y = y + segment_convolution(u.flip(-1), late, segments.flip(-1)).flip(-1)
        if state is not None:
            remembered = self.respond(system, state, length)
            y = y + (remembered if segments is None else remembered * (segments == 0)[:, None])
        return y if mask is None else take(y, from_left(mask))

    def response(self, system: Any, length: int, cut: bool) -> Tensor:
        """K over `length` tokens, zero after `max_kernel_length` of them if `cut`."""
        if not cut or self.longest is None:
            return self.impulse(system, length)
        if is_tracing_graph():  # one graph for any length
            kernel = self.impulse(system, length)
            return kernel * (torch.arange(length, device=kernel.device) < self.longest)
        if self.longest >= length:
            return self.impulse(system, length)
        return F.pad(self.impulse(system, self.longest), (0, length - self.longest))

    def carry(self, system: Any, u: Tensor, context: Context, state: State) -> State:
        """The state after the last real token of the row's last sequence."""
        mask, segments, length = context.mask, context.segments, u.shape[2]
        if segments is not None:
            last = segments == segments[:, -1:]
            mask = last if mask is None else mask & last
        if mask is None:
            count = torch.full(u.shape[:1], length, device=u.device)
        else:
            order, count = to_right(mask), mask.sum(1)
            u = take(u, order) * mask.gather(1, order)[:, None]
        added = self.absorb(system, u)
        if state is None:
            return added
        kept = self.decay(system, state, count, length)
        if segments is not None:
            kept = choose(segments[:, -1] == 0, kept, tuple(torch.zeros_like(part) for part in kept))
        return self.add(kept, added)

    def add(self, kept: State, added: State) -> State:
        """The state of which one part was there before and the other came from the inputs."""
        return tuple(one + other for one, other in zip(kept, added, strict=True))


def choose(condition: Tensor, yes: State, no: State) -> State:
    """The rows of one state where condition (b) holds, else those of the other."""
    return tuple(
        torch.where(condition.reshape((-1,) + (1,) * (one.dim() - 1)), one, other)
        for one, other in zip(yes, no, strict=True)
    )
