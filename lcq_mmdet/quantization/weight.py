"""A quantized weight as what is stored of it: codes, codebook, scale."""
from typing import NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from .quantizer import LCQQuantizer

_BLOCK = 2**16


class QuantizedWeight(NamedTuple):
    """A weight of few values, bit by bit ``scale * codebook[codes]``.

    Attributes:
        codes: Indices of values, uint8, shape of the weight (out, ...).
        codebook: The values there are, float32, ascending, shape (n); -0
            is one of its own, before 0.
        scale: What the values of each output channel are multiplied by,
            float32, shape (out); ``None`` where that is nothing.
    """
    codes: np.ndarray
    codebook: np.ndarray
    scale: Optional[np.ndarray] = None

    @classmethod
    @torch.no_grad()
    def of(cls, quantizer: LCQQuantizer, weight: Tensor) -> 'QuantizedWeight':
        """Quantize a weight.

        Args:
            quantizer: The weight's quantizer, filled in.
            weight: The weight as it is, finite float32, shape (out, ...).

        Raises:
            ValueError: If there are more than 256 different values.
        """
        values, scale = quantizer.factors(weight)
        codes, codebook = encode(values.cpu().numpy())
        return cls(codes, codebook,
                   None if scale is None else scale.flatten().cpu().numpy())

    def values(self) -> np.ndarray:
        """Look the codes up, float32, shape of ``codes``.

        Raises:
            ValueError: If a code is outside the codebook.
        """
        codes = self.codes.reshape(-1)
        largest = int(codes.max(initial=0))
        if len(codes) and largest >= len(self.codebook):
            raise ValueError(f'the code {largest} is outside the codebook of '
                             f'{len(self.codebook)} values')
        values = np.empty(len(codes), np.float32)
        for start in range(0, len(codes), _BLOCK):
            part = slice(start, start + _BLOCK)
            # No code is clipped; this mode needs no buffer.
            np.take(self.codebook, codes[part], out=values[part], mode='clip')
        values = values.reshape(self.codes.shape)
        if self.scale is None:
            return values
        return self.scale.reshape(-1, *[1] * (values.ndim - 1)) * values


def encode(values: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Find the codebook of values, and their codes.

    Args:
        values: Finite float32 values of any shape, at most 256 different
            ones.

    Returns:
        Codes and codebook as :class:`QuantizedWeight` has them.

    Raises:
        ValueError: If there are more.

    Examples:
        >>> encode(np.array([[.5, -1.], [0., .5]], np.float32))[0].tolist()
        [[2, 0], [1, 2]]
    """
    # Seen as integers, values are alike only where all their bits are.
    patterns = np.ascontiguousarray(values).view(np.int32)
    known = np.unique(patterns)
    if len(known) > 256:
        raise ValueError(f'its weight has {len(known)} different values')
    order = np.argsort(known.view(np.float32), kind='stable')
    rank = np.empty(len(known), np.uint8)
    rank[order] = np.arange(len(known))
    return (rank[np.searchsorted(known, patterns)],
            known.view(np.float32)[order])


def packed_size(count: int, bits: int) -> int:
    """Count the bytes that ``count`` codes take."""
    return -(-count * bits // 8)
