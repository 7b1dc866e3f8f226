"""CRC-32C (Castagnoli), with numpy's speed.

A checksum is the remainder of the message, read as a polynomial over GF(2), by P(x) of degree 32. Any multiple of P
may be subtracted first, and a sparse one makes that cheap: x^6777 + x^484 + x^100 + 1 is a multiple of P, hence so is
its 2^k-th power x^(6777 n) + x^(484 n) + x^(100 n) + 1 with n = 2^k. With n = 64 a whole 8-byte word disappears when
it is added (xor) to the words 6293, 6677 and 6777 places later, and 6293 words go at once. What remains, 6777 words,
is folded again by bytes (n = 8), and the last 6777 bytes pass through the usual table.
"""

import numpy as np
from numpy.typing import NDArray

REFLECTED_POLYNOMIAL = 0x82F63B78
EXPONENTS = (6777, 484, 100, 0)
DEGREE = EXPONENTS[0]
DISTANCES = tuple(DEGREE - exponent for exponent in EXPONENTS[1:])
CHUNK = 1 << 22
ALL_ONES, MASK_DELTA = 0xFFFFFFFF, 0xA282EAD8


def remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (REFLECTED_POLYNOMIAL if byte & 1 else 0)
    return byte


TABLE = tuple(map(remainder, range(256)))


def crc32c(data: bytes | bytearray | memoryview | NDArray[np.uint8], start: int = 0) -> int:
    """The checksum of `data`; `start` is that of the bytes before it, so that a stream can be read in parts."""
    everything = np.frombuffer(data, np.uint8)
    state = start ^ ALL_ONES
    for begin in range(0, everything.size, CHUNK):
        state = advance(everything[begin : begin + CHUNK], state)
    return state ^ ALL_ONES


def advance(message: NDArray[np.uint8], state: int) -> int:
    """The register after `message`, which it met as `state`: the same as 0 meeting a message that begins with it."""
    size = message.size
    if size < 4:
        return by_bytes(message.tobytes(), state)
    padded = np.zeros(-(-size // 8) * 8, np.uint8)
    padded[-size:] = message
    padded[padded.size - size :][:4] ^= np.frombuffer(state.to_bytes(4, "little"), np.uint8)
    words = fold(padded.view(np.uint64))
    return by_bytes(fold(words.view(np.uint8)).tobytes(), 0)


def fold(message: NDArray) -> NDArray:
    """The last `DEGREE` items of `message` after the earlier ones were added to them; works in place."""
    begin, last = 0, message.size - DEGREE
    while begin < last:
        end = min(begin + min(DISTANCES), last)
        for distance in DISTANCES:
            message[begin + distance : end + distance] ^= message[begin:end]
        begin = end
    return message[begin:]


def by_bytes(message: bytes, state: int) -> int:
    for byte in message:
        state = TABLE[(state ^ byte) & 255] ^ state >> 8
    return state


def masked(checksum: int) -> int:
    """How LevelDB's formats store a checksum, so that checksums of data with checksums in them stay apart."""
    return ((checksum >> 15 | checksum << 17) + MASK_DELTA) & ALL_ONES
