"""Start values of clip and theta from samples, in closed form.

All errors are sums of squares taken from sorted samples and their prefix
sums, so a candidate costs one binary search a level, whatever the number of
samples N. That is many steps on few numbers, so they are taken in numpy.
"""
from typing import Tuple

import numpy as np
import torch
from torch import Tensor

from lcq_mmdet.errors import LCQError

from .companding import num_steps

_MIN_HEIGHT = 1e-4


class _Magnitudes:
    """Sorted magnitudes with prefix sums of their powers 0, 1 and 2."""

    def __init__(self, x: Tensor, signed: bool) -> None:
        x = x.detach().flatten()
        x = x if x.dtype == torch.float64 else x.float()
        values = (x.abs() if signed else x).cpu().numpy()
        positive = values[values > 0]
        if not len(positive):
            raise LCQError(
                f'x: no {"non-zero" if signed else "positive"} value among '
                f'{len(x)}; there is nothing to place levels on')
        if not np.isfinite(positive).all() or np.isnan(values).any():
            raise LCQError('x: must be finite')
        self.sorted = np.sort(positive).astype(np.float64)
        self.max = self.sorted[-1]
        self._sums = np.zeros((3, len(positive) + 1))
        self._sums[0] = np.arange(len(positive) + 1)
        np.cumsum(self.sorted, out=self._sums[1, 1:])
        np.cumsum(self.sorted**2, out=self._sums[2, 1:])

    def cell_sums(self, thresholds: np.ndarray) -> np.ndarray:
        """Sum powers between thresholds (..., s): shape (3, ..., s + 1)."""
        ends = np.zeros((*thresholds.shape[:-1], thresholds.shape[-1] + 2),
                        np.int64)
        ends[..., 1:-1] = np.searchsorted(self.sorted, thresholds)
        ends[..., -1] = len(self.sorted)
        sums = self._sums[:, ends]
        return sums[..., 1:] - sums[..., :-1]

    def error(self, thresholds: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sum the squared errors of rounding to values (..., s + 1)."""
        count, first, second = self.cell_sums(thresholds)
        return (second - 2 * values * first + values**2 * count).sum(-1)


def quantization_error(x: Tensor, clip: Tensor, theta: Tensor, bits: int,
                       signed: bool) -> Tensor:
    """Compute the mean squared error of quantizing samples.

    Args:
        x: Finite samples, shape (N); not all zero.
        clip: Positive clip, in units of ``x``, shape ().
        theta: Logits of the interval heights, shape (K).
        bits: Bit-width, 2 to 8.
        signed: Whether the levels are symmetric about 0; else only positive
            samples count.

    Returns:
        Mean over all N samples, in squared units of ``x``, float64.

    Raises:
        LCQError: If there is no usable sample or ``bits`` is invalid.
    """
    error = _error(
        _Magnitudes(x, signed), clip.item(),
        theta.double().softmax(0).cpu().numpy(), num_steps(bits, signed))
    return torch.tensor(error / x.numel(), device=x.device).double()


def _error(magnitudes: _Magnitudes, clip: float, heights: np.ndarray,
           s: int) -> float:
    """Sum the squared errors of the compander with rises (K) that sum to 1."""
    knots = np.concatenate([[0.], heights.cumsum()])
    edges = np.linspace(0, 1, len(knots))
    # f^-1, linear in between: where codes change, and the levels of codes.
    points = clip * np.interp(np.arange(2 * s + 1) / (2 * s), knots, edges)
    return magnitudes.error(points[1::2], points[::2]).item()


def _uniform_clip(magnitudes: _Magnitudes, s: int) -> float:
    clips = magnitudes.max * np.logspace(-2, 0, 128)
    codes = np.arange(s + 1)
    thresholds = clips[:, None] * (codes[1:] - 0.5) / s
    errors = magnitudes.error(thresholds, clips[:, None] * codes / s)
    return clips[errors.argmin()]


def _asymptotic_levels(magnitudes: _Magnitudes,
                       fractions: np.ndarray) -> np.ndarray:
    """Place levels with a density of p^(1/3) (Panter and Dite, 1951).

    Args:
        magnitudes: Samples.
        fractions: Share of the levels below each, in [0, 1], shape (L).
    """
    edges = magnitudes.max * np.linspace(0, 1, 1025)
    count, _, _ = magnitudes.cell_sums(edges[1:-1])
    cumulative = np.concatenate([[0.], np.cbrt(count + 1e-3).cumsum()])
    return np.interp(fractions, cumulative / cumulative[-1], edges)


def _lloyd_max_levels(magnitudes: _Magnitudes, s: int,
                      num_iters: int,
                      zero: bool = True) -> Tuple[np.ndarray, np.ndarray]:
    """Run Lloyd's algorithm for s + 1 levels, the lowest held at 0 or not."""
    codes = np.arange(s + 1)
    values = _asymptotic_levels(
        magnitudes, codes / (s + 0.5) if zero else (codes + 0.5) / (s + 1))
    for _ in range(num_iters):
        thresholds = (values[1:] + values[:-1]) / 2
        count, first, _ = magnitudes.cell_sums(thresholds)
        means = np.where(count > 0, first / np.maximum(count, 1), values)
        if zero:
            means[0] = 0
        if (means == values).all():
            break
        values = means
    return (values[1:] + values[:-1]) / 2, values


def mse_init(x: Tensor, bits: int, signed: bool,
             num_intervals: int = 16) -> Tuple[Tensor, Tensor]:
    """Find the uniform quantizer with the least squared error.

    Args:
        x: Finite samples, shape (N); not all zero.
        bits: Bit-width, 2 to 8.
        signed: Whether the levels are symmetric about 0; else they begin
            there.
        num_intervals: Number of intervals of the compander, K.

    Returns:
        Clip, shape (), the best of 128 from 1 % to 100 % of the largest
        magnitude; and theta, shape (K), all zero. dtype of ``x``.

    Raises:
        LCQError: If ``x`` has no usable or a non-finite value.
    """
    clip = _uniform_clip(_Magnitudes(x, signed), num_steps(bits, signed))
    return x.new_tensor(clip), x.new_zeros(num_intervals)


def lowest_level(x: Tensor, bits: int, num_iters: int = 100) -> Tensor:
    """Find the lowest of the 2**bits Lloyd-Max levels of signed samples.

    Args:
        x: Finite samples, shape (N); not all the same.
        bits: Bit-width, 2 to 8.
        num_iters: Iterations of Lloyd's algorithm.

    Returns:
        The level, in units of ``x``, shape (), dtype of ``x``.

    Raises:
        LCQError: If the values are all the same, or one is not finite.
    """
    minimum = x.detach().min()
    _, values = _lloyd_max_levels(
        _Magnitudes(x - minimum, signed=False),
        num_steps(bits, signed=False),
        num_iters,
        zero=False)
    return minimum + values[0]


def lloyd_max_init(x: Tensor,
                   bits: int,
                   signed: bool,
                   num_intervals: int = 16,
                   num_iters: int = 100) -> Tuple[Tensor, Tensor]:
    """Fit the compander to the Lloyd-Max levels of samples.

    With levels l_j (l_0 = 0) and thresholds t_j = (l_(j-1) + l_j) / 2, f has
    to pass through (t_j, (j - 1/2)/s) and (l_j, j/s). It is interpolated at
    the K + 1 knots of each of several clips near l_s; theta is the logarithm
    of its rises. The best uniform quantizer is among the candidates, so the
    result is never worse than :func:`mse_init`.

    Args:
        x: Finite samples, shape (N); not all zero.
        bits: Bit-width, 2 to 8.
        signed: Whether the levels are symmetric about 0; else they begin
            there.
        num_intervals: Number of intervals of the compander, K.
        num_iters: Iterations of Lloyd's algorithm.

    Returns:
        Clip, shape (), in units of ``x``; and theta with mean 0, shape (K).
        dtype of ``x``.

    Raises:
        LCQError: If ``x`` has no usable or a non-finite value.
    """
    s = num_steps(bits, signed)
    magnitudes = _Magnitudes(x, signed)
    clip = _uniform_clip(magnitudes, s)
    heights = np.full(num_intervals, 1 / num_intervals)
    best = _error(magnitudes, clip, heights, s), clip, heights

    thresholds, values = _lloyd_max_levels(magnitudes, s, num_iters)
    inner = np.stack([thresholds, values[1:]], 1).flatten()[:-1]
    knots = np.linspace(0, 1, num_intervals + 1)
    for clip in np.linspace(0.8, 1.3, 26) * values[-1]:
        if clip <= inner[-1]:
            continue
        points = np.concatenate([[0.], inner, [clip]])
        rises = np.diff(
            np.interp(clip * knots, points,
                      np.arange(2 * s + 1) / (2 * s)))
        heights = np.maximum(rises, _MIN_HEIGHT)
        heights /= heights.sum()
        error = _error(magnitudes, clip, heights, s)
        if error < best[0]:
            best = error, clip, heights
    theta = np.log(best[2])
    return x.new_tensor(best[1]), x.new_tensor(theta - theta.mean())
