"""Pieces and their hashes: section 1 of docs/PROTOCOL.md.

The package `blake3` does not compute chaining values of subtrees, so they are computed here, for all chunks of a piece at the
same time (BLAKE3 specification, section 2).
"""

from __future__ import annotations

from typing import Any, BinaryIO

import blake3
import numpy as np
import numpy.typing as npt

MIN_PIECE, MAX_PIECE = 256 * 1024, 4 * 1024 * 1024
MAX_FILE = 1 << 42
# The number of hashes in a payload of 4 MiB.
MAX_PAYLOAD_HASHES = 4 * 1024 * 1024 // 32

_Words = npt.NDArray[np.uint32]

_CHUNK = 1024
_BLOCK = 64
_IV = np.array(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19], np.uint32
)
_PERMUTATION = np.array([2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8])
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8


def piece_size(size: int) -> int:
    """Returns the size of the pieces of a file of `size` bytes."""
    wanted = 1
    while wanted * 8192 < size:
        wanted *= 2
    return min(max(wanted, MIN_PIECE), MAX_PIECE)


def piece_count(size: int) -> int:
    """Returns the number of pieces of a file of `size` bytes."""
    return -(-size // piece_size(size))


def piece_length(size: int, index: int) -> int:
    """Returns the length of a piece, of which only the last may be shorter than the others."""
    return min(piece_size(size), size - index * piece_size(size))


def piece_hash(size: int, index: int, content: bytes) -> bytes:
    """Returns the hash of a piece of a file of `size` bytes."""
    if piece_count(size) == 1:
        return blake3.blake3(content).digest()
    return _bytes(_subtree(content, index * piece_size(size) // _CHUNK))


def piece_hashes(file: BinaryIO, size: int) -> list[bytes]:
    """Reads a file of `size` bytes and returns the hashes of its pieces."""
    hashes = []
    for index in range(piece_count(size)):
        content = file.read(piece_length(size, index))
        if len(content) != piece_length(size, index):
            raise EOFError("the file became shorter while it was read")
        hashes.append(piece_hash(size, index, content))
    return hashes


def file_id(hashes: list[bytes]) -> bytes:
    """Merges the hashes of all pieces into the id of the file."""
    if not hashes:
        return blake3.blake3(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    values = np.frombuffer(b"".join(hashes), "<u4").astype(np.uint32).reshape(-1, 8).T
    while values.shape[1] > 2:
        values = _merge_level(values)
    return _bytes(_parents(values, _PARENT | _ROOT))


def _bytes(value: _Words) -> bytes:
    return value[:, 0].astype("<u4").tobytes()


def _subtree(content: bytes, first_chunk: int) -> _Words:
    """Returns the chaining value of a subtree as a column of 8 words."""
    full = len(content) // _CHUNK
    values = []
    if full:
        values.append(_chunks(content[: full * _CHUNK], full, _CHUNK, first_chunk))
    if len(content) % _CHUNK:
        values.append(_chunks(content[full * _CHUNK :], 1, len(content) % _CHUNK, first_chunk + full))
    level = np.concatenate(values, axis=1)
    while level.shape[1] > 1:
        level = _merge_level(level)
    return level


def _chunks(content: bytes, count: int, length: int, first: int) -> _Words:
    """Returns the chaining values of `count` chunks of equal length."""
    blocks = -(-length // _BLOCK)
    padded = content if length == _CHUNK else content.ljust(blocks * _BLOCK, b"\0")
    words = np.frombuffer(padded, "<u4").astype(np.uint32).reshape(count, blocks, 16).transpose(1, 2, 0)
    words = np.ascontiguousarray(words)
    counters = np.arange(first, first + count, dtype=np.uint64)
    value = np.repeat(_IV[:, None], count, axis=1)
    for block in range(blocks):
        flags = (_CHUNK_START if block == 0 else 0) | (_CHUNK_END if block == blocks - 1 else 0)
        value = _compress(value, words[block], counters, min(_BLOCK, length - block * _BLOCK), flags)
    return value


def _merge_level(values: _Words) -> _Words:
    """Merges neighbours. The last of an odd number of values is kept."""
    even = values.shape[1] // 2 * 2
    return np.concatenate([_parents(values[:, :even], _PARENT), values[:, even:]], axis=1)


def _parents(values: _Words, flags: int) -> _Words:
    count = values.shape[1] // 2
    block = np.concatenate([values[:, 0::2], values[:, 1::2]])
    return _compress(np.repeat(_IV[:, None], count, axis=1), block, np.zeros(count, np.uint64), _BLOCK, flags)


def _compress(value: _Words, block: _Words, counters: npt.NDArray[np.uint64], length: int, flags: int) -> _Words:
    """Compresses one block of each column."""
    a, b = value[:4].copy(), value[4:].copy()
    c = np.repeat(_IV[:4, None], value.shape[1], axis=1)
    d = np.empty_like(c)
    d[0], d[1] = counters & np.uint64(0xFFFFFFFF), counters >> np.uint64(32)
    d[2], d[3] = length, flags
    message = block
    for round_number in range(7):
        if round_number:
            message = message[_PERMUTATION]
        a, b, c, d = _mix(a, b, c, d, message[0:8:2], message[1:8:2])
        b, c, d = b[[1, 2, 3, 0]], c[[2, 3, 0, 1]], d[[3, 0, 1, 2]]
        a, b, c, d = _mix(a, b, c, d, message[8::2], message[9::2])
        b, c, d = b[[3, 0, 1, 2]], c[[2, 3, 0, 1]], d[[1, 2, 3, 0]]
    return np.concatenate([a ^ c, b ^ d])


def _mix(a: _Words, b: _Words, c: _Words, d: _Words, x: _Words, y: _Words) -> tuple[Any, Any, Any, Any]:
    a = a + b + x
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 12)
    a = a + b + y
    d = _rotate(d ^ a, 8)
    c = c + d
    return a, _rotate(b ^ c, 7), c, d


def _rotate(words: _Words, bits: int) -> _Words:
    return (words >> np.uint32(bits)) | (words << np.uint32(32 - bits))
