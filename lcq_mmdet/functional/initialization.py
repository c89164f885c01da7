"""Start values of clip and theta from samples, in closed form.

All errors are sums of squares taken from sorted samples and their prefix
sums, so a candidate costs one binary search a level, whatever the number of
samples N.
"""
from typing import Tuple

import torch
from torch import Tensor

from lcq_mmdet.errors import LCQError

from .companding import expand, levels, num_steps

_MIN_HEIGHT = 1e-4


class _Magnitudes:
    """Sorted magnitudes with prefix sums of their powers 0, 1 and 2."""

    def __init__(self, x: Tensor, signed: bool) -> None:
        x = x.detach().flatten().double()
        x = x.abs() if signed else x
        self.sorted = x[x > 0].sort().values
        if not len(self.sorted):
            raise LCQError(
                f'x: no {"non-zero" if signed else "positive"} value among '
                f'{len(x)}; there is nothing to place levels on')
        if not self.sorted[-1].isfinite() or x.isnan().any():
            raise LCQError('x: must be finite')
        powers = torch.stack(
            [torch.ones_like(self.sorted), self.sorted, self.sorted**2])
        self.sums = torch.nn.functional.pad(powers.cumsum(1), (1, 0))

    @property
    def max(self) -> Tensor:
        return self.sorted[-1]

    def cell_sums(self, thresholds: Tensor) -> Tensor:
        """Sum powers between thresholds (..., s): shape (3, ..., s + 1)."""
        ends = torch.searchsorted(self.sorted, thresholds.contiguous())
        ends = torch.nn.functional.pad(ends, (1, 0))
        ends = torch.nn.functional.pad(ends, (0, 1), value=len(self.sorted))
        return self.sums[:, ends].diff(dim=-1)

    def error(self, thresholds: Tensor, values: Tensor) -> Tensor:
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
        signed: Whether negative values have levels of their own; without
            them only positive samples count.

    Returns:
        Mean over all N samples, in squared units of ``x``, float64.

    Raises:
        LCQError: If there is no usable sample or ``bits`` is invalid.
    """
    return _error(_Magnitudes(x, signed), clip.double(), theta.double(), bits,
                  signed) / x.numel()


def _error(magnitudes: _Magnitudes, clip: Tensor, theta: Tensor, bits: int,
           signed: bool) -> Tensor:
    s = num_steps(bits, signed)
    halves = torch.arange(s, dtype=theta.dtype, device=theta.device) + 0.5
    return magnitudes.error(clip * expand(halves / s, theta),
                            clip * levels(theta, bits, signed))


def _uniform_clip(magnitudes: _Magnitudes, s: int) -> Tensor:
    clips = magnitudes.max * torch.logspace(
        -2, 0, 128, dtype=torch.double, device=magnitudes.max.device)
    codes = torch.arange(s + 1, dtype=torch.double, device=clips.device)
    thresholds = clips[:, None] * (codes[1:] - 0.5) / s
    errors = magnitudes.error(thresholds, clips[:, None] * codes / s)
    return clips[errors.argmin()]


def _asymptotic_levels(magnitudes: _Magnitudes, fractions: Tensor) -> Tensor:
    """Place levels with a density of p^(1/3) (Panter and Dite, 1951).

    Args:
        magnitudes: Samples.
        fractions: Share of the levels below each, in [0, 1], shape (L).
    """
    edges = magnitudes.max * torch.linspace(
        0, 1, 1025, dtype=torch.double, device=magnitudes.max.device)
    count, _, _ = magnitudes.cell_sums(edges[1:-1])
    cumulative = (count + 1e-3).pow(1 / 3).cumsum(0)
    cumulative = torch.nn.functional.pad(cumulative / cumulative[-1], (1, 0))
    return _interpolate(fractions, cumulative, edges)


def _lloyd_max_levels(magnitudes: _Magnitudes, s: int,
                      num_iters: int,
                      zero: bool = True) -> Tuple[Tensor, Tensor]:
    """Run Lloyd's algorithm for s + 1 levels, the lowest held at 0 or not."""
    codes = torch.arange(
        s + 1, dtype=torch.double, device=magnitudes.max.device)
    values = _asymptotic_levels(
        magnitudes, codes / (s + 0.5) if zero else (codes + 0.5) / (s + 1))
    for _ in range(num_iters):
        thresholds = (values[1:] + values[:-1]) / 2
        count, first, _ = magnitudes.cell_sums(thresholds)
        means = torch.where(count > 0, first / count.clamp(min=1), values)
        if zero:
            means[0] = 0
        values = means
    return (values[1:] + values[:-1]) / 2, values


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    k = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    fraction = (x - xs[k - 1]) / (xs[k] - xs[k - 1])
    return ys[k - 1] + fraction * (ys[k] - ys[k - 1])


def mse_init(x: Tensor, bits: int, signed: bool,
             num_intervals: int = 16) -> Tuple[Tensor, Tensor]:
    """Find the uniform quantizer with the least squared error.

    Args:
        x: Finite samples, shape (N); not all zero.
        bits: Bit-width, 2 to 8.
        signed: Whether negative values have levels of their own.
        num_intervals: Number of intervals of the compander, K.

    Returns:
        Clip, shape (), the best of 128 from 1 % to 100 % of the largest
        magnitude; and theta, shape (K), all zero. dtype of ``x``.

    Raises:
        LCQError: If ``x`` has no usable or a non-finite value.
    """
    clip = _uniform_clip(_Magnitudes(x, signed), num_steps(bits, signed))
    return clip.to(x.dtype), x.new_zeros(num_intervals)


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
    return values[0].to(x.dtype) + minimum


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
        signed: Whether negative values have levels of their own.
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
    theta = x.new_zeros(num_intervals, dtype=torch.double)
    best = _error(magnitudes, clip, theta, bits, signed), clip, theta

    thresholds, values = _lloyd_max_levels(magnitudes, s, num_iters)
    inner = torch.stack([thresholds, values[1:]], 1).flatten()[:-1]
    codes = torch.arange(2 * s + 1, dtype=torch.double, device=x.device)
    knots = torch.linspace(
        0, 1, num_intervals + 1, dtype=torch.double, device=x.device)
    for ratio in torch.linspace(0.8, 1.3, 26).tolist():
        clip = ratio * values[-1]
        if clip <= inner[-1]:
            continue
        points = torch.cat([inner.new_zeros(1), inner, clip[None]])
        rises = _interpolate(clip * knots, points, codes / (2 * s)).diff()
        theta = rises.clamp(min=_MIN_HEIGHT).log()
        theta = theta - theta.mean()
        error = _error(magnitudes, clip, theta, bits, signed)
        if error < best[0]:
            best = error, clip, theta
    return best[1].to(x.dtype), best[2].to(x.dtype)
