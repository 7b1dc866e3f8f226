"""LevelDB's sorted table, the form of a bundle's index: keys and values in order, in blocks that carry checksums.

A block holds entries (shared prefix length, rest length, value length, rest of the key, value), then the places where
the prefix starts anew and their number, 32 bits each; behind it stand one byte for its compression and the masked
checksum of both. The last 48 bytes of the file say where the index block is, which says where the others are.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from struct import pack, unpack_from

from .crc32c import crc32c, masked
from .varint import read_varint, write_varint

MAGIC = pack("<Q", 0xDB4775248B80FB57)
FOOTER, TRAILER = 48, 5
BLOCK_SIZE, RESTART_INTERVAL = 1 << 18, 16
COMPRESSIONS = {1: "snappy", 2: "zstd"}

Pairs = list[tuple[bytes, bytes]]


def is_table(tail: bytes) -> bool:
    """Whether a file that ends with `tail` (8 bytes or more) is a sorted table."""
    return tail.endswith(MAGIC)


def read_table(data: bytes) -> Pairs:
    """Every key and value of the table `data`, in order.

    ValueError where the file is cut off, a checksum is wrong, a block is compressed, or the keys are out of order.
    """
    if len(data) < FOOTER or not is_table(data):
        raise ValueError("its end is not that of a sorted table: it is another kind of file, or cut off")
    footer = data[-FOOTER:-8]
    _, place = read_block(data, footer, 0)
    index, _ = read_block(data, footer, place)
    pairs = [pair for _, handle in index for pair in read_block(data, handle, 0)[0]]
    for (one, _), (other, _) in pairwise(pairs):
        if one >= other:
            raise ValueError(f"its keys are out of order: {other!r} stands behind {one!r}")
    return pairs


def read_block(data: bytes, handles: bytes, place: int) -> tuple[Pairs, int]:
    """The block that the handle at `place` points to, and the place behind the handle."""
    offset, place = read_varint(handles, place)
    size, place = read_varint(handles, place)
    end = offset + size
    if end + TRAILER > len(data) - FOOTER:
        raise ValueError(f"it names a block at offset {offset} of {size} bytes, but ends before it: it is cut off")
    if masked(crc32c(data[offset : end + 1])) != unpack_from("<I", data, end + 1)[0]:
        raise ValueError(f"the block at offset {offset} is damaged: its bytes have another checksum (crc32c)")
    if data[end]:
        kind = COMPRESSIONS.get(data[end], f"method {data[end]}")
        raise ValueError(f"the block at offset {offset} is compressed ({kind}), which is not read")
    try:
        return parse_block(data[offset:end]), place
    except ValueError as error:
        raise ValueError(f"the block at offset {offset} is malformed: {error}") from error


def parse_block(block: bytes) -> Pairs:
    restarts = unpack_from("<I", block, len(block) - 4)[0] if len(block) >= 4 else 0
    end = len(block) - 4 - 4 * restarts
    if len(block) < 4 or end < 0:
        raise ValueError("it has no room for its restart points")
    place, key, pairs = 0, b"", []
    while place < end:
        shared, place = read_varint(block, place)
        rest, place = read_varint(block, place)
        length, place = read_varint(block, place)
        if shared > len(key) or place + rest + length > end:
            raise ValueError("an entry is longer than the block")
        key = key[:shared] + block[place : place + rest]
        place += rest
        pairs.append((key, block[place : place + length]))
        place += length
    return pairs


def write_table(pairs: Sequence[tuple[bytes, bytes]], block_size: int = BLOCK_SIZE) -> bytes:
    """The table of `pairs`, whose keys ascend, byte for byte as TensorFlow writes it; ValueError where they do not."""
    table, index = bytearray(), []
    block = Block()
    for number, (key, value) in enumerate(pairs):
        following = pairs[number + 1][0] if number + 1 < len(pairs) else None
        if following is not None and key >= following:
            raise ValueError(f"the keys are out of order: {following!r} stands behind {key!r}")
        block.add(key, value)
        if following is None or block.size >= block_size:
            index.append((separator(key, following), append(table, block)))
            block = Block()
    metaindex = append(table, Block())
    handles = metaindex + append(table, Block(index, 1))
    return bytes(table + handles.ljust(FOOTER - 8, b"\0") + MAGIC)


class Block:
    """A block in the making. `interval`: after how many entries a key is written whole."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]] = (), interval: int = RESTART_INTERVAL) -> None:
        self.interval, self.count, self.last = interval, 0, b""
        self.entries, self.restarts = bytearray(), [0]
        for key, value in pairs:
            self.add(key, value)

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self.count % self.interval:
            shared = common_length(key, self.last)
        elif self.count:
            self.restarts.append(len(self.entries))
        self.entries += write_varint(shared) + write_varint(len(key) - shared) + write_varint(len(value))
        self.entries += key[shared:] + value
        self.count, self.last = self.count + 1, key

    @property
    def size(self) -> int:
        return len(self.entries) + 4 * len(self.restarts) + 4

    def finished(self) -> bytes:
        return bytes(self.entries) + pack(f"<{len(self.restarts) + 1}I", *self.restarts, len(self.restarts))


def append(table: bytearray, block: Block) -> bytes:
    """Puts the block behind the table; its handle."""
    content = block.finished()
    handle = write_varint(len(table)) + write_varint(len(content))
    content += b"\0"
    table += content + pack("<I", masked(crc32c(content)))
    return handle


def common_length(one: bytes, other: bytes) -> int:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def separator(key: bytes, following: bytes | None) -> bytes:
    """A short key from `key` on and before `following` (None: behind everything), by LevelDB's rule."""
    if following is None:
        place = next((place for place, byte in enumerate(key) if byte < 255), len(key))
    else:
        place = common_length(key, following)
        if place == min(len(key), len(following)) or key[place] + 1 >= following[place]:
            return key
    return key[:place] + bytes([key[place] + 1]) if place < len(key) else key
