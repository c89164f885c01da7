"""What the loops of the CPU kernel look up, from the compander.

These are float32 numbers, and computed as the reference computes them, bit
by bit: that decides which code a value on a threshold gets.
"""
from typing import NamedTuple

import numpy as np
from numba import njit

from .compiling import kept

#: Thresholds are compared in groups of as many; the last one is filled up.
GROUP = 4
#: With more steps, looking the code up is faster than comparing.
MAX_COMPARED = 63


class Tables(NamedTuple):
    """Look-up tables of one quantizer.

    Attributes:
        slopes: Slope of f in each interval, shape (K).
        knots: Start of each interval in the image of f, shape (K).
        levels: Output magnitudes over the clip, shape (s + 1).
        thresholds: The least magnitude, in units of x, of each code but 0,
            then NaN up to whole groups; shape (0) where codes are looked up.
    """
    slopes: np.ndarray
    knots: np.ndarray
    levels: np.ndarray
    thresholds: np.ndarray


@njit(inline='always')
def interval_of(v, num_intervals):
    """Find the interval of a magnitude over the clip in [0, 1]."""
    return min(
        np.int32(v * np.float32(num_intervals)), np.int32(num_intervals - 1))


@njit(inline='always')
def code_in(v, i, slope, knot, num_intervals, s):
    """Find the code of a magnitude over the clip in the interval i.

    It is from 0 to s whatever theta and clip are.
    """
    u = slope * (v - np.float32(i) / np.float32(num_intervals)) + knot
    return np.int32(np.rint(u * s) if u < np.float32(1) else s)


@kept(error_model='numpy')
def _code(v, slopes, knots, s):
    i = interval_of(v, len(slopes))
    return code_in(v, i, slopes[i], knots[i], len(slopes), s)


@kept(error_model='numpy')
def _expand(u, slopes, knots):
    """Map companded magnitudes, float32 and ascending, shape (N), back."""
    v = np.empty_like(u)
    q = 0
    for n in range(len(u)):
        while q + 1 < len(knots) and knots[q + 1] <= u[n]:
            q += 1
        v[n] = ((u[n] - knots[q]) / slopes[q] +
                np.float32(q) / np.float32(len(knots)))
        if u[n] >= np.float32(1):
            v[n] += 1 - v[n]
    return v


@kept(error_model='numpy')
def _is_monotone(slopes, knots, s):
    """Check that no code falls where one interval ends and the next begins.

    A threshold within rounding errors of a knot can make it so; inside an
    interval every operation is monotone.
    """
    num_intervals = len(slopes)
    for i in range(1, num_intervals):
        v = np.float32(i) / np.float32(num_intervals)
        while interval_of(v, num_intervals) < i:
            v = np.nextafter(v, np.float32(1))
        before = np.nextafter(v, np.float32(0))
        while interval_of(before, num_intervals) >= i:
            v, before = before, np.nextafter(before, np.float32(0))
        if _code(before, slopes, knots, s) > _code(v, slopes, knots, s):
            return False
    return True


@kept(error_model='numpy')
def _find_thresholds(guesses, clip, slopes, knots, s):
    """Find the least magnitude of each code but 0, in place.

    The bits of floats that are not negative have their order. They are
    bisected, from a bracket that grows about the guess.

    Args:
        guesses: Starts of the search, float32, shape (s).
    """
    patterns = guesses.view(np.int32)
    probe = np.empty(1, np.int32)
    magnitude = probe.view(np.float32)
    infinity = 0x7f800000
    for n in range(len(guesses)):
        start = min(max(patterns[n], 0), infinity - 1)
        low, high, width = -1, infinity, 4
        middle = start - width
        while high - low > 1:
            if middle <= low or middle >= high:
                middle = (low + high) // 2
            probe[0] = middle
            v = (
                magnitude[0] / clip
                if magnitude[0] < clip else np.float32(1))
            if _code(v, slopes, knots, s) > n:
                high = middle
            else:
                low = middle
            width *= 8
            if high == infinity:
                middle = start + width
            elif low < 0:
                middle = start - width
            else:
                middle = (low + high) // 2
        patterns[n] = high


@kept(error_model='numpy')
def make_tables(heights, s, clip):
    """Build the tables.

    Args:
        heights: Softmax of theta, float32, shape (K).
        s: Number of levels but the lowest.
        clip: The clip, float32.
    """
    slopes = heights * np.float32(len(heights))
    knots = np.empty_like(heights)
    total = 0.
    for i in range(len(heights)):
        total += heights[i]
        knots[i] = np.float32(total) - heights[i]
    codes = np.arange(s + 1).astype(np.float32)
    levels = _expand(codes / np.float32(s), slopes, knots)
    if s > MAX_COMPARED or not _is_monotone(slopes, knots, np.float32(s)):
        return Tables(slopes, knots, levels, np.empty(0, np.float32))
    thresholds = np.full(-(-s // GROUP) * GROUP, np.nan, np.float32)
    middles = (codes[1:] - np.float32(0.5)) / np.float32(s)
    thresholds[:s] = clip * _expand(middles, slopes, knots)
    _find_thresholds(thresholds[:s], clip, slopes, knots, np.float32(s))
    return Tables(slopes, knots, levels, thresholds)
