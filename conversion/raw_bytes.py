"""Tensors as their bytes, and files of them that never need more memory than one tensor."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

# Names of the safetensors format, the widest first: each tensor of the file is then aligned to its own width.
SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ORDER = {dtype: place for place, dtype in enumerate(SAFETENSORS_DTYPES)}


def raw_bytes(tensor: Tensor) -> Tensor:
    """The elements in row-major order as a vector of bytes (uint8); a copy only where they lie otherwise."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    return plain.contiguous().reshape(-1).view(torch.uint8)


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes (NaN equals NaN, -0 is not 0)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(raw_bytes(one), raw_bytes(other))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes `tensors` with their own dtypes, each as a tensor of its own though two may share memory.

    They are made contiguous one at a time, so that views (transposed, mapped from a file) cost no memory together,
    which the library's own function cannot do. ValueError names a tensor whose dtype or name the format lacks.
    """
    wrong = [name for name, tensor in tensors.items() if tensor.dtype not in SAFETENSORS_DTYPES]
    if wrong:
        dtype = tensors[wrong[0]].dtype
        names = [name for name in wrong if tensors[name].dtype == dtype]
        raise ValueError(f"safetensors cannot hold {dtype}, the dtype of {', '.join(names[:6])}")
    if "__metadata__" in tensors:
        raise ValueError("safetensors cannot hold a tensor that is called '__metadata__'")
    names = sorted(tensors, key=lambda name: (ORDER[tensors[name].dtype], name))
    header = json_header({name: tensors[name] for name in names}, metadata)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            stream.write(raw_bytes(tensors[name]).numpy())


def json_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """The header, filled up with spaces to a multiple of 8 bytes."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    written = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return written.ljust(-(-len(written) // 8) * 8)
