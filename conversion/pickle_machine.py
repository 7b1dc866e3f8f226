"""A pickle reader that calls nothing.

The standard unpickler imports every name in a file and calls it. This one interprets the same opcodes (protocols 0
to 5) on names alone: a name stays a `Symbol`, a call to a name becomes what the table of `pickle_calls` makes of it
(tensors and plain values), or else an `Opaque` that remembers the name and does nothing. A file cannot run code,
whatever it contains.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from .pickle_calls import CALLS, CONSTANTS, KNOWN, NumpyArray, NumpyType
from .symbols import Opaque, OrderedMapping, Symbol, is_container

INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
BYTES = {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
PUSHED = INTEGERS | BYTES | TEXTS | {"FLOAT", "BINFLOAT"}
LITERALS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}


class Machine:
    """Interprets one pickle from `stream`, which is left just behind it.

    `persistent` answers the persistent ids (torch's storages). After `run`, `refused` holds the full names of all
    classes and functions that the pickle mentions and that are neither tensors nor plain values.
    """

    def __init__(self, stream: BinaryIO, persistent: Callable[[Any], Any]) -> None:
        self.stream, self.persistent = stream, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.symbols: set[Symbol] = set()

    @property
    def refused(self) -> set[str]:
        return {str(symbol) for symbol in self.symbols if symbol not in KNOWN and not is_container(symbol)}

    def run(self) -> Any:
        """Returns the object; raises ValueError where the pickle is truncated or malformed."""
        try:
            for opcode, argument, _ in pickletools.genops(self.stream):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.execute(opcode.name, argument)
        except ValueError:
            raise
        except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"malformed pickle ({type(error).__name__}: {error})") from error
        raise ValueError("the pickle ends early")

    def execute(self, name: str, argument: Any) -> None:
        if name in PUSHED:
            self.stack.append(argument)
        elif name in LITERALS:
            self.stack.append(LITERALS[name]())
        elif name not in ("PROTO", "FRAME"):
            handler = getattr(self, f"op_{name.lower()}", None)
            if handler is None:
                raise ValueError(f"the pickle opcode {name} is not accepted")
            handler(argument)

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def op_mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def op_pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def op_pop_mark(self, _: Any) -> None:
        self.pop_mark()

    def op_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def op_tuple(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def op_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def op_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def op_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def op_list(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def op_frozenset(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(items))

    def op_dict(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def op_append(self, _: Any) -> None:
        item = self.stack.pop()
        self.extend(self.stack[-1], [item])

    def op_appends(self, _: Any) -> None:
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    def op_additems(self, _: Any) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(items)
        else:
            self.extend(self.stack[-1], items)

    def extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Opaque):
            target = target.items
        if not isinstance(target, list):
            raise ValueError(f"the pickle appends to a {type(target).__name__}")
        target.extend(items)

    def op_setitem(self, _: Any) -> None:
        pair = self.stack[-2:]
        del self.stack[-2:]
        self.update(self.stack[-1], pair)

    def op_setitems(self, _: Any) -> None:
        items = self.pop_mark()
        self.update(self.stack[-1], items)

    def update(self, target: Any, items: list[Any]) -> None:
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, Opaque):
            target.items.extend(pairs)
        elif isinstance(target, dict):
            target.update(pairs)
        else:
            raise ValueError(f"the pickle sets items of a {type(target).__name__}")

    def op_put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    op_binput = op_long_binput = op_put

    def op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    op_binget = op_long_binget = op_get

    def op_persid(self, argument: str) -> None:
        self.stack.append(self.persistent(argument))

    def op_binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))

    def symbol(self, module: Any, name: Any) -> Any:
        symbol = Symbol(str(module), str(name))
        if symbol in CONSTANTS:
            return CONSTANTS[symbol]
        self.symbols.add(symbol)
        return symbol

    def op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self.symbol(module, name))

    def op_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.symbol(module, name))

    def op_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        arguments = self.pop_mark()
        self.stack.append(self.call(self.symbol(module, name), tuple(arguments)))

    def op_obj(self, _: Any) -> None:
        function, *arguments = self.pop_mark()
        self.stack.append(self.call(function, tuple(arguments)))

    def op_reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, arguments))

    op_newobj = op_reduce

    def op_newobj_ex(self, _: Any) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, (*arguments, keywords) if keywords else arguments))

    def call(self, function: Any, arguments: Any) -> Any:
        """What `function(*arguments)` stands for; only entries of CALLS are computed, and those are ours."""
        if not isinstance(arguments, tuple):
            raise ValueError(f"the pickle calls with a {type(arguments).__name__} in place of arguments")
        if isinstance(function, Opaque):
            return Opaque(function.symbol, arguments)
        if not isinstance(function, Symbol):
            raise ValueError(f"the pickle calls a {type(function).__name__}")
        if function in CALLS:
            return CALLS[function](*arguments)
        return Opaque(function, arguments)

    def op_build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, NumpyArray | NumpyType):
            target.build(state)
        elif isinstance(target, OrderedMapping) and isinstance(state, dict):
            target.attributes = {key: item for key, item in state.items() if isinstance(key, str)}
        elif isinstance(target, Opaque):
            target.state = state
