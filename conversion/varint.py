"""Numbers as protocol buffers and LevelDB tables write them: seven bits per byte, the lowest first."""

LONGEST = 10


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position` and the position behind it; ValueError where it is cut off or over 64 bits."""
    value = 0
    for place, byte in enumerate(data[position : position + LONGEST]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            if value >> 64:
                break
            return value, position + place + 1
    raise ValueError(f"no number of at most 64 bits at byte {position}")


def write_varint(value: int) -> bytes:
    """`value` (0 to 2^64 - 1) as bytes; ValueError outside this range."""
    if value < 0 or value >> 64:
        raise ValueError(f"{value} is not a number from 0 to 2^64 - 1")
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)
