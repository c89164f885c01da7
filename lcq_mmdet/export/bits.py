"""Codes of 2 to 8 bits as a stream of bytes, and back.

Code i takes the bits from i * bits on, lowest bit first, across the borders
of bytes. Eight codes fill as many bytes as a code has bits, so they go
through one 64-bit word.
"""
import numpy as np

from lcq_mmdet.quantization.weight import packed_size

# Eight codes each; what is worked on at a time stays in the cache.
_BLOCK = 2**14


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes to exactly their bits.

    Args:
        codes: Codes below 2**bits, uint8, shape (N).
        bits: Bits of a code, 1 to 8.

    Returns:
        The stream, uint8, shape (ceil(N bits / 8)); bits after the last code
        are 0.

    Examples:
        >>> pack_codes(np.array([1, 2, 3], np.uint8), bits=4).tolist()
        [33, 3]
    """
    stream = np.empty((-(-len(codes) // 8), bits), np.uint8)
    for start in range(0, len(stream), _BLOCK):
        block = codes[8 * start:8 * (start + _BLOCK)]
        rows = np.pad(block, (0, -len(block) % 8)).reshape(-1, 8)
        words = np.zeros(len(rows), '<u8')
        for k in range(8):
            words |= rows[:, k].astype('<u8') << np.uint64(bits * k)
        stream[start:start + _BLOCK] = words.view(np.uint8).reshape(
            -1, 8)[:, :bits]
    return stream.reshape(-1)[:packed_size(len(codes), bits)]


def unpack_codes(stream: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Undo :func:`pack_codes`.

    Args:
        stream: The stream, uint8, shape (ceil(count bits / 8)).
        bits: Bits of a code, 1 to 8.
        count: Number of codes, N.

    Returns:
        Codes, uint8, shape (N).

    Examples:
        >>> unpack_codes(np.array([33, 3], np.uint8), 4, count=3).tolist()
        [1, 2, 3]
    """
    codes = np.empty((-(-count // 8), 8), np.uint8)
    mask = np.uint64(2**bits - 1)
    for start in range(0, len(codes), _BLOCK):
        block = stream[bits * start:bits * (start + _BLOCK)]
        rows = np.pad(block, (0, -len(block) % bits)).reshape(-1, bits)
        words = np.zeros((len(rows), 8), np.uint8)
        words[:, :bits] = rows
        word = words.view('<u8')[:, 0]
        for k in range(8):
            codes[start:start + _BLOCK, k] = (word >> np.uint64(bits * k)
                                              & mask)
    return codes.reshape(-1)[:count]
