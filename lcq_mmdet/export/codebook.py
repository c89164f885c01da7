"""A tensor of few values as codes and a codebook, and back, bit by bit."""
from typing import NamedTuple

import numpy as np

_BLOCK = 2**16


class Coded(NamedTuple):
    """Values as indices into a table.

    Attributes:
        codes: Indices of values, uint8, shape (N).
        codebook: The values there are, float32, ascending, shape (n); -0
            is one of its own, before 0.
    """
    codes: np.ndarray
    codebook: np.ndarray


def encode(values: np.ndarray) -> Coded:
    """Find the codebook of values, and their codes.

    Args:
        values: Finite float32 values of any shape, at most 256 different
            ones.

    Raises:
        ValueError: If there are more.
    """
    # Seen as integers, values are alike only where all their bits are.
    patterns = values.reshape(-1).view(np.int32)
    known = np.unique(patterns)
    if len(known) > 256:
        raise ValueError(f'{len(known)} different values')
    order = np.argsort(known.view(np.float32), kind='stable')
    rank = np.empty(len(known), np.uint8)
    rank[order] = np.arange(len(known))
    codes = rank[np.searchsorted(known, patterns)]
    return Coded(codes, known.view(np.float32)[order])


def decode(coded: Coded) -> np.ndarray:
    """Look the codes up, shape (N), float32.

    Raises:
        ValueError: If a code is outside the codebook.
    """
    codes, codebook = coded
    largest = int(codes.max(initial=0))
    if len(codes) and largest >= len(codebook):
        raise ValueError(f'the code {largest} is outside the codebook of '
                         f'{len(codebook)} values')
    values = np.empty(len(codes), np.float32)
    for start in range(0, len(codes), _BLOCK):
        part = slice(start, start + _BLOCK)
        # No code is clipped; this mode needs no buffer.
        np.take(codebook, codes[part], out=values[part], mode='clip')
    return values
