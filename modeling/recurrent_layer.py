"""The state of one block, as a layer of a transformers cache: constant in size, exact to roll back.

The layer keeps the state tensors of one block. While the past is recorded it also keeps the state before and
the block's inputs since, and `crop(-n)` runs the block again on the inputs that stay: no mixer knows of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING, CacheLayerMixin
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, create_recurrent_attention_mask

from ..configuration.decoder import RECURRENT_LAYER_TYPE
from .state import Context, State, join_contexts


class RecurrentLayer(CacheLayerMixin):
    """The state of one block; `block` is the module that replays inputs, never saved nor copied."""

    _layer_type = RECURRENT_LAYER_TYPE  # registers the class with DynamicCache and generate()
    supports_early_init = False
    state: Any  # a tuple of tensors, or None before the first token
    length: Any  # int, or a tensor in the static flavour
    block: Any
    record: Any  # (state before, inputs, contexts) since the record began, or None

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.state, self.length, self.block, self.record = None, 0, None, None
        self.device: torch.device | None = None
        self.record_past = False

    # what the backbone calls

    def read(self, block, x: Tensor) -> State:
        """The state before x (b t d), after checking that it fits `block` and the batch."""
        if self.state is not None and self.block is not block:
            check_state(self.state, block, x)
        self.block = block
        return self.state

    def write(self, state: State, x: Tensor, context: Context) -> None:
        """Keep the state after x (b t d), the block's input under `context`."""
        if self.record_past:
            before, inputs, contexts = self.record or (self.remembered(), [], [])
            self.record = (before, [*inputs, x.detach()], [*contexts, context])
        self.put(state, x.shape[1])
        self.device, self.is_initialized = x.device, True

    def remembered(self) -> State:
        return self.state

    def put(self, state: State, steps: int) -> None:
        self.state = state
        self.length += steps

    # rollback

    @property
    def is_croppable(self) -> bool:
        return self.record_past

    def activate_past_recording(self) -> None:
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens, as if they had never been seen; 0 only ends the record so far.

        Raises ValueError for a positive number or for more tokens than were recorded, RuntimeError without a record.
        """
        if not self.record_past:
            raise RuntimeError(
                "call `activate_past_recording()` on the cache before the tokens that `crop` shall undo."
            )
        if tokens_to_remove > 0:
            raise ValueError(f"`crop` takes the negative number of tokens to forget, not {tokens_to_remove}.")
        recorded = 0 if self.record is None else sum(x.shape[1] for x in self.record[1])
        keep = recorded + tokens_to_remove
        if keep < 0:
            raise ValueError(f"cannot forget {-tokens_to_remove} tokens: only the last {recorded} were recorded.")
        if tokens_to_remove:
            self.put(self.replay(keep), tokens_to_remove)
        self.record = None

    @torch.no_grad()
    def replay(self, keep: int) -> State:
        """The state after the first `keep` tokens of the record."""
        before, inputs, contexts = self.record
        if not keep:
            return before
        x = torch.cat(inputs, dim=1)
        context = join_contexts(contexts, x.shape[0], [part.shape[1] for part in inputs])
        return self.block(x[:, :keep], context.head(keep), before)[1]

    # what transformers calls

    def lazy_initialization(self, *args, **kwargs) -> None:
        """Nothing to prepare: a state is made by the block that it belongs to."""

    def update(self, *args, **kwargs):
        raise TypeError("a recurrent layer holds no keys and values: it is written by the model's forward alone.")

    def get_seq_length(self) -> int | Tensor:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int | Tensor, int]:
        return self.length + query_length, 0

    @property
    def batch_size(self) -> int:
        return -1 if self.state is None else self.state[0].shape[0]

    def reset(self) -> None:
        self.state, self.length, self.record, self.is_initialized = None, 0, None, False

    def transform(self, change) -> None:
        """Apply `change` to every tensor that has a row for each sequence."""
        if self.state is None:
            return
        self.state = tuple(change(part) for part in self.state)
        if self.record is not None:
            before, inputs, contexts = self.record
            before = None if before is None else tuple(change(part) for part in before)
            batch = inputs[0].shape[0]
            contexts = [transform_context(context, change, batch) for context in contexts]
            self.record = (before, [change(x) for x in inputs], contexts)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.transform(lambda part: part.index_select(0, beam_idx.to(part.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.transform(lambda part: part.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.transform(lambda part: part[indices.to(part.device)])

    def offload(self) -> None:
        self.transform(lambda part: part.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        if self.device is not None:
            self.transform(lambda part: part.to(self.device, non_blocking=True))

    def __deepcopy__(self, memo: dict) -> RecurrentLayer:
        return self.fork()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"block": None, "record": None}

    def fork(self) -> RecurrentLayer:
        """An independent layer in the same state, without graph, record and replay."""
        twin = object.__new__(type(self))
        vars(twin).update(self.__getstate__())
        if self.state is not None:
            twin.state = tuple(part.detach().clone() for part in self.state)
        return twin


class StaticRecurrentLayer(RecurrentLayer):
    """The flavour for torch.compile: tensors at fixed addresses, written in place, and a counter that is a tensor."""

    _layer_type = None  # registered below: the hook would take it for the dynamic flavour
    is_compileable = True

    def __init__(self, max_cache_len: int | None = None, **kwargs) -> None:
        super().__init__()
        self.length = torch.tensor(0)

    def read(self, block, x: Tensor) -> State:
        if self.state is None:
            self.length = self.length.to(x.device)
            self.state = tuple(part.clone() for part in block.initial_state(x.shape[0], x.dtype, x.device))
            if not torch.compiler.is_compiling():
                for part in (*self.state, self.length):
                    torch._dynamo.mark_static_address(part)
        return super().read(block, x)

    def remembered(self) -> State:
        return tuple(part.clone() for part in self.state)

    def put(self, state: State, steps: int) -> None:
        for part, new in zip(self.state, state, strict=True):
            part.copy_(new.detach())
        self.length.add_(steps)

    def transform(self, change) -> None:
        before: Any = self.state
        super().transform(change)
        after: Any = self.state
        # Reordered rows stay where compiled code looks for them; another number of rows needs other tensors.
        if before is not None and all(new.shape == part.shape for part, new in zip(before, after, strict=True)):
            for part, new in zip(before, after, strict=True):
                part.copy_(new)
            self.state = before

    def reset(self) -> None:
        if self.block is None:  # a fork, not yet run
            self.state = None
        elif self.state is not None:
            empty = self.block.initial_state(self.batch_size, self.state[0].dtype, self.state[0].device)
            for part, new in zip(self.state, empty, strict=True):
                part.copy_(new)
        self.length.zero_()
        self.record = None

    def fork(self) -> RecurrentLayer:
        twin = super().fork()
        twin.length = self.length.clone()
        return twin


def check_state(state: State, block, x: Tensor) -> None:
    """Raises ValueError unless the state has the shapes that `block` makes for the batch of x."""
    found = [tuple(part.shape) for part in state]
    expected = [tuple(part.shape) for part in block.initial_state(x.shape[0], x.dtype, torch.device("meta"))]
    if [shape[1:] for shape in found] != [shape[1:] for shape in expected]:
        raise ValueError(f"this cache comes from another model: its states are {found}, this one's {expected}.")


def transform_context(context: Context, change, batch: int) -> Context:
    """The context with `change` applied to what has a row for each of `batch` sequences."""
    mask, segments = (
        None if part is None else change(part.expand(batch, -1)) for part in (context.mask, context.segments)
    )
    positions = change(context.positions.expand(batch, -1))
    return Context(positions, mask, segments, causal=context.causal, keep_state=context.keep_state)


STATIC_LAYER_TYPE_MAPPING[RECURRENT_LAYER_TYPE] = StaticRecurrentLayer
# Without an entry generate() hands a growing mask to compiled steps, which recompile at every token.
LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[RECURRENT_LAYER_TYPE] = create_recurrent_attention_mask
