"""A few of many values, always the same ones."""
import math


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
