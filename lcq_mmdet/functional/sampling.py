"""A few of many values, always the same ones."""
import math

import torch
from torch import Tensor


def sample_stride(num_values: int, most: int) -> int:
    """Choose the stride that takes at most some number of values.

    It has no factor in common with their number, so that the samples spread
    over all rows, columns and channels of a tensor.

    Args:
        num_values: Number of elements of the flattened tensor, N.
        most: Number of samples, 1 or more.

    Returns:
        1 where all are taken, and else the least such stride above N / most.

    Examples:
        >>> sample_stride(1000, 2**15), sample_stride(2**20, 2**15)
        (1, 33)
    """
    stride = max(1, -(-num_values // most))
    while math.gcd(stride, num_values) > 1:
        stride += 1
    return stride


def with_extremes(x: Tensor, most: int) -> Tensor:
    """Take the least and the largest value and some others.

    Args:
        x: Values, shape (N).
        most: Number of the others, at most.

    Returns:
        Samples, which share no memory with ``x``.

    Examples:
        >>> with_extremes(torch.tensor([3., 1., 2.]), most=3)
        tensor([1., 3., 3., 1., 2.])
    """
    return torch.cat(
        [torch.stack(x.aminmax()), x[::sample_stride(len(x), most)]])
