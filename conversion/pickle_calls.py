"""The names in a pickle that stand for tensors and plain values, and what we make of a call to each.

Every function here is ours and pure. A name that is missing from the table is never called (see `pickle_machine`).
"""

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .symbols import Opaque, OrderedMapping, Symbol

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
NUMPY_FORMATS = {"f4": "f", "f8": "d", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H"}
NUMPY_FORMATS |= {"u1": "B", "b1": "?", "f2": "e"}
NUMPY_DTYPES = {"f4": torch.float32, "f8": torch.float64, "f2": torch.float16, "b1": torch.bool, "u1": torch.uint8}
NUMPY_DTYPES |= {"i8": torch.int64, "i4": torch.int32, "i2": torch.int16, "i1": torch.int8}
NUMPY_DTYPES |= {"u8": torch.uint64, "u4": torch.uint32, "u2": torch.uint16, "c8": torch.complex64}


def rebuild_tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """A view of `storage` (a 1-D tensor); ValueError where the view reaches beyond it."""
    if not isinstance(storage, Tensor):
        raise ValueError("a tensor in the file has no storage")
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if math.prod(size) and (offset < 0 or min(stride, default=0) < 0 or last >= storage.numel()):
        raise ValueError(f"a tensor of shape {tuple(size)} reaches beyond its storage of {storage.numel()} elements")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def rebuild_tensor_v3(
    storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    if not isinstance(dtype, torch.dtype) or not isinstance(storage, Tensor):
        raise ValueError("a tensor in the file has no dtype or no storage")
    return rebuild_tensor(storage.view(torch.uint8).view(dtype), offset, size, stride)


def rebuild_parameter(data: Any, requires_grad: bool = True, *_: Any) -> torch.nn.Parameter:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter in the file has no tensor")
    return torch.nn.Parameter(data, requires_grad=bool(requires_grad) and data.is_floating_point())


def rebuild_from_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    if function in CALLS and kind in (Symbol("torch", "Tensor"), Symbol("torch.nn.parameter", "Parameter")):
        return CALLS[function](*arguments)
    return Opaque(kind if isinstance(kind, Symbol) else Symbol("torch", "Tensor"), tuple(arguments))


class NumpyType:
    """numpy.dtype(code): `code` such as "f4", and the byte order that its state sets."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = str(code), "<"

    def build(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = ">" if state[1] == ">" else "<"


class NumpyArray:
    """A numpy.ndarray of the pickle; `tensor` holds its content once its state is known."""

    def __init__(self, *_: Any) -> None:
        self.tensor: Tensor | None = None

    def build(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, NumpyType) or kind.code not in NUMPY_DTYPES or not isinstance(data, bytes | str):
            return
        buffer = bytearray(data.encode("latin1") if isinstance(data, str) else data)
        dtype = NUMPY_DTYPES[kind.code]
        if kind.order == ">" or len(buffer) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"a numpy array of shape {tuple(shape)} is damaged or big-endian")
        flat = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
        self.tensor = (
            flat.reshape(tuple(shape)[::-1]).permute(*range(len(shape))[::-1]) if fortran else flat.reshape(shape)
        )


def numpy_scalar(kind: Any, data: Any = b"") -> Any:
    """The Python number that a numpy scalar holds."""
    if not isinstance(kind, NumpyType) or kind.code not in NUMPY_FORMATS:
        return Opaque(Symbol("numpy", f"scalar({getattr(kind, 'code', kind)})"), (data,))
    raw = data.encode("latin1") if isinstance(data, str) else data
    return struct.unpack(kind.order + NUMPY_FORMATS[kind.code], raw)[0]


def encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise ValueError(f"the pickle encodes text as {encoding!r}")
    return text.encode(encoding)


def ordered_mapping(pairs: Any = ()) -> OrderedMapping:
    return OrderedMapping(pairs)


def default_mapping(_: Any = None, pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs)


def reconstructor(kind: Any, *arguments: Any) -> Opaque:
    """copyreg's way to make an object of class `kind` before its state is set."""
    return Opaque(kind if isinstance(kind, Symbol) else Symbol("builtins", "object"), arguments)


def byte_array(content: Any = b"", *encoding: str) -> bytearray:
    return bytearray(content if isinstance(content, bytes) else encode(content, *encoding))


BUILTINS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "int": int,
    "long": int,
    "float": float,
    "complex": complex,
    "bool": bool,
    "bytearray": byte_array,
    "object": lambda: Opaque(Symbol("builtins", "object")),
}
CALLS: dict[Symbol, Callable[..., Any]] = {
    Symbol("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    Symbol("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    Symbol("torch._utils", "_rebuild_tensor_v3"): rebuild_tensor_v3,
    Symbol("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    Symbol("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
    Symbol("torch._tensor", "_rebuild_from_type_v2"): rebuild_from_type,
    Symbol("torch.nn.parameter", "Parameter"): rebuild_parameter,
    Symbol("torch", "Size"): lambda extents=(): torch.Size(extents),
    Symbol("torch", "device"): lambda *arguments: torch.device(*arguments),
    Symbol("collections", "OrderedDict"): ordered_mapping,
    Symbol("collections", "defaultdict"): default_mapping,
    Symbol("_codecs", "encode"): encode,
    Symbol("copy_reg", "_reconstructor"): reconstructor,
    Symbol("copyreg", "_reconstructor"): reconstructor,
}
CALLS |= {Symbol(module, name): call for module in ("builtins", "__builtin__") for name, call in BUILTINS.items()}
for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    CALLS |= {Symbol(core, "scalar"): numpy_scalar, Symbol(core, "_reconstruct"): NumpyArray}
CALLS |= {Symbol("numpy", "dtype"): NumpyType, Symbol("numpy", "ndarray"): NumpyArray}
CONSTANTS: dict[Symbol, Any] = {Symbol("torch", name): dtype for name, dtype in DTYPES.items()}
KNOWN = frozenset(
    {*CALLS, Symbol("torch", "Tensor"), Symbol("torch.storage", "UntypedStorage")}
    | {Symbol("torch", name) for name in STORAGE_DTYPES}
)
