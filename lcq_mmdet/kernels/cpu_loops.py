"""The loops of the CPU kernel, compiled by numba on first use.

One pass forward and one backward, over all cores. The work is cut into the
same chunks whatever the number of threads, so results do not depend on it.

Short loops over small buffers, because these the compiler vectorizes. It
gathers nothing: a code is the number of thresholds at or below the value, so
a few comparisons find it.
"""
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from lcq_mmdet.functional import MIN_DEVIATION

from .addresses import floats_at
from .compiling import kept
from .cpu_tables import GROUP, Tables, code_in, interval_of, make_tables

_TILE = 512
#: Tiles whose sums are added up in float32 before they go to float64.
_TILES = 16
_MAX_CHUNKS = 64
#: What a chunk sets up should cost little beside what it does.
_MIN_TILES = 16
_LANES = 4


class Scaled(NamedTuple):
    """A quantizer in units of its values, and what the scale follows from.

    Attributes:
        clip: The clip times the unit.
        offset: The offset times the unit.
        unit: Standard deviation of the values, or 1.
        mean: Mean of the values, where they are normalized.
    """
    clip: np.float32
    offset: np.float32
    unit: np.float32
    mean: np.float32


@kept()
def _pack(scaled, tables):
    """Put all into one array, as Python takes long to hold many."""
    slopes, knots, levels, thresholds = tables
    return np.concatenate(
        (np.array(scaled), slopes, knots, levels, thresholds))


@njit(inline='always')
def _unpack(state, num_intervals, s):
    clip, offset, unit, mean = state[:4]
    slopes, rest = state[4:4 + num_intervals], state[4 + num_intervals:]
    knots, rest = rest[:num_intervals], rest[num_intervals:]
    return (Scaled(clip, offset, unit, mean),
            Tables(slopes, knots, rest[:s + 1], rest[s + 1:]))


@njit(inline='always')
def _chunk_size(size):
    tiles = (size + _TILE - 1) // _TILE
    tiles_each = (tiles + _MAX_CHUNKS - 1) // _MAX_CHUNKS
    return max(tiles_each, _MIN_TILES) * _TILE


@njit(inline='always')
def _num_chunks(size):
    return (size + _chunk_size(size) - 1) // _chunk_size(size)


@njit(inline='always')
def _measure(x, offset, signed, magnitude):
    """Compute what is divided by the clip."""
    for n in range(len(x)):
        magnitude[n] = abs(x[n]) if signed else max(x[n] - offset,
                                                    np.float32(0))


@njit(inline='always')
def _look_up(magnitude, clip, tables, code):
    """Find codes through intervals."""
    slopes, knots, levels, _ = tables
    num_intervals, s = len(slopes), np.float32(len(levels) - 1)
    v = np.empty(_TILE, np.float32)
    slope = np.empty(_TILE, np.float32)
    knot = np.empty(_TILE, np.float32)
    for n in range(_TILE):
        size = magnitude[n]
        v[n] = size / clip if size < clip else np.float32(1)
        code[n] = interval_of(v[n], num_intervals)
    for n in range(_TILE):
        # Unsigned, as numba would look for negative indices.
        i = np.uint32(code[n])
        slope[n] = slopes[i]
        knot[n] = knots[i]
    for n in range(_TILE):
        code[n] = code_in(v[n], code[n], slope[n], knot[n], num_intervals, s)


@kept(error_model='numpy')
def _forward_chunk(x, y, clip, offset, tables, outputs, signed):
    thresholds = tables.thresholds
    magnitude = np.zeros(_TILE, np.float32)
    value = np.empty(_TILE, np.float32)
    code = np.empty(_TILE, np.int32)
    for start in range(0, len(x), _TILE):
        tile, target = x[start:start + _TILE], y[start:start + _TILE]
        _measure(tile, offset, signed, magnitude)
        if len(thresholds):
            value[:] = outputs[0]
        else:
            _look_up(magnitude, clip, tables, code)
            for n in range(_TILE):
                value[n] = outputs[np.uint32(code[n])]
        for j in range(0, len(thresholds), GROUP):
            t0, t1, t2, t3 = thresholds[j:j + GROUP]
            y0, y1, y2, y3 = outputs[j + 1:j + 1 + GROUP]
            for n in range(_TILE):
                size, y_n = magnitude[n], value[n]
                y_n = y0 if size >= t0 else y_n
                y_n = y1 if size >= t1 else y_n
                y_n = y2 if size >= t2 else y_n
                value[n] = y3 if size >= t3 else y_n
        for n in range(len(tile)):
            x_n, y_n = tile[n], value[n]
            y_n = -y_n if signed & (x_n < np.float32(0)) else y_n
            target[n] = y_n if x_n == x_n else x_n


@kept(parallel=True, error_model='numpy')
def _forward_chunks(x, y, clip, offset, tables, outputs, signed):
    chunk = _chunk_size(len(x))
    for b in prange(_num_chunks(len(x))):
        part = slice(b * chunk, (b + 1) * chunk)
        _forward_chunk(x[part], y[part], clip, offset, tables, outputs, signed)


# Sums in any order: these are the loops that need it to be vectorized.
@kept(fastmath={'reassoc'})
def _power_sums(x, shift):
    first, second = 0., 0.
    for n in range(len(x)):
        value = np.float64(x[n]) - shift
        first += value
        second += value * value
    return first, second


@kept(parallel=True)
def _normalize(x, clip, offset):
    """Measure clip and offset in units of the deviation of ``x``."""
    chunk = _chunk_size(len(x))
    sums = np.zeros((_num_chunks(len(x)), 2))
    shift = np.float64(x[0])
    for b in prange(len(sums)):
        sums[b] = _power_sums(x[b * chunk:(b + 1) * chunk], shift)
    mean, square = sums.sum(0) / len(x)
    deviation = np.float32(np.sqrt(max(square - mean * mean, 0.)))
    unit = max(deviation, np.float32(MIN_DEVIATION))
    return Scaled(clip * unit, offset * unit, unit, np.float32(shift + mean))


@kept(error_model='numpy')
def forward(x, y, size, heights, clip, offset, num_intervals, s, signed,
            normalized):
    """Quantize ``x`` into ``y``.

    Args:
        x, y: Addresses of ``size`` float32 values each.
        heights: Address of the softmax of theta, float32, shape (K).
        s: Number of levels but the lowest.

    Returns:
        What the functions below need.
    """
    scaled = Scaled(
        np.float32(clip), np.float32(offset), np.float32(1), np.float32(0))
    if normalized:
        scaled = _normalize(floats_at(x, size), scaled.clip, scaled.offset)
    tables = make_tables(floats_at(heights, num_intervals), s, scaled.clip)
    state = _pack(scaled, tables)
    forward_again(x, y, size, state, num_intervals, s, signed, normalized)
    return state


@kept(error_model='numpy')
def forward_again(x, y, size, state, num_intervals, s, signed, normalized):
    """Quantize ``x`` into ``y`` with the ``state`` :func:`forward` gave."""
    scaled, tables = _unpack(state, num_intervals, s)
    outputs = np.zeros(s + GROUP, np.float32)
    outputs[:s + 1] = scaled.offset + scaled.clip * tables.levels
    _forward_chunks(floats_at(x, size), floats_at(y, size), scaled.clip,
                    scaled.offset, tables, outputs, signed)


@kept(error_model='numpy')
def _backward_chunk(x, dy, dx, clip, offset, tables, signed, sums):
    num_intervals, thresholds = len(tables.slopes), tables.thresholds
    cells = len(sums)
    outside, below = np.int32(cells - 2), np.int32(cells - 1)
    inverse = np.float32(1) / clip
    lanes = np.zeros((_LANES * cells, 2), np.float32)
    magnitude = np.zeros(_TILE, np.float32)
    moment = np.empty(_TILE, np.float32)
    signed_grad = np.empty(_TILE, np.float32)
    code = np.empty(_TILE, np.int32)
    lane = np.arange(_TILE).astype(np.int32) % _LANES * np.int32(cells)
    for start in range(0, len(x), _TILE):
        tile, grad = x[start:start + _TILE], dy[start:start + _TILE]
        target, first = dx[start:start + _TILE], grad
        _measure(tile, offset, signed, magnitude)
        if signed:
            first = signed_grad
            for n in range(len(tile)):
                g, x_n = grad[n], tile[n]
                above = g if x_n > np.float32(0) else np.float32(0)
                first[n] = -g if x_n < np.float32(0) else above
        if len(thresholds):
            code[:] = 0
        else:
            _look_up(magnitude, clip, tables, code)
        for j in range(0, len(thresholds), GROUP):
            t0, t1, t2, t3 = thresholds[j:j + GROUP]
            for n in range(_TILE):
                size = magnitude[n]
                code[n] += (
                    np.int32(size >= t0) + np.int32(size >= t1) +
                    np.int32(size >= t2) + np.int32(size >= t3))
        for n in range(len(tile)):
            size = magnitude[n]
            v = min(size * inverse, np.float32(1))
            moment[n] = first[n] * v
            cell = code[n] + interval_of(v, num_intervals)
            cell = cell if size < clip else outside
            cell = cell if signed | (size > np.float32(0)) else below
            target[n] = grad[n] if cell < outside else np.float32(0)
            code[n] = cell + lane[n]
        for n in range(len(tile)):
            cell = np.uint32(code[n])
            lanes[cell, 0] += first[n]
            lanes[cell, 1] += moment[n]
        if start // _TILE % _TILES == _TILES - 1 or start + _TILE >= len(x):
            for cell in range(len(lanes)):
                sums[cell % cells, 0] += lanes[cell, 0]
                sums[cell % cells, 1] += lanes[cell, 1]
            lanes[:] = 0


@kept(parallel=True, error_model='numpy')
def _backward_chunks(x, dy, dx, clip, offset, tables, signed):
    """Write dx; return sums of each chunk, shape (chunks, K + s + 2, 2).

    The last two cells hold what lies outside the clip, and what lies below
    the levels of a quantizer that is not signed.
    """
    chunk = _chunk_size(len(x))
    cells = len(tables.slopes) + len(tables.levels) + 1
    sums = np.zeros((_num_chunks(len(x)), cells, 2))
    for b in prange(len(sums)):
        part = slice(b * chunk, (b + 1) * chunk)
        _backward_chunk(x[part], dy[part], dx[part], clip, offset, tables,
                        signed, sums[b])
    return sums


@kept()
def _add_deviations_chunk(x, dx, mean, factor):
    for n in range(len(x)):
        dx[n] += factor * (x[n] - mean)


@kept(parallel=True)
def _add_deviations(x, dx, mean, factor):
    chunk = _chunk_size(len(x))
    for b in prange(_num_chunks(len(x))):
        part = slice(b * chunk, (b + 1) * chunk)
        _add_deviations_chunk(x[part], dx[part], mean, factor)


@kept(error_model='numpy')
def backward(x, dy, dx, size, state, num_intervals, s, signed, normalized):
    """Write the gradient ``dx``, all addresses of ``size`` float32 values.

    Returns:
        Gradients of theta, clip and offset, float32, shapes (K), () and ().
    """
    (clip, offset, unit, mean), tables = _unpack(state, num_intervals, s)
    values, grad = floats_at(x, size), floats_at(dx, size)
    sums = _backward_chunks(values, floats_at(dy, size), grad, clip, offset,
                            tables, signed).sum(0)
    grad_clip, grad_theta = _parameter_gradients(sums, clip, tables)
    grad_offset = sums[-2, 0] + sums[-1, 0]
    if normalized:
        # The deviation has the gradient (x - mean) / (N deviation).
        grad_unit = grad_clip * clip + grad_offset * offset
        if unit > np.float32(MIN_DEVIATION):
            _add_deviations(values, grad, mean,
                            np.float32(grad_unit / unit / unit / size))
    grads = (np.empty(len(grad_theta), np.float32), np.empty((), np.float32),
             np.empty((), np.float32))
    grads[0][:] = grad_theta
    grads[1][()] = grad_clip * unit
    grads[2][()] = grad_offset * unit
    return grads


@kept(error_model='numpy')
def _parameter_gradients(sums, clip, tables):
    """Turn sums of cells into gradients of clip and theta.

    In the interval i, the ramps r_k(v) of ``cells.py`` are 1 for k < i,
    K v - i for k = i, and 0 for k > i.
    """
    slopes, knots, levels, _ = tables
    num_intervals, s = len(slopes), len(levels) - 1
    grad_clip = sums[num_intervals + s, 0]
    grad_heights = np.zeros(num_intervals)
    i = q = 0
    for cell in range(num_intervals + s):
        # Interval i begins at the cell i + (code of its knot).
        while (i + 1 < num_intervals
               and cell > i + np.rint(knots[i + 1] * np.float32(s))):
            i += 1
        # A theta of NaN has no order, and i is anything.
        code = min(max(cell - i, 0), s)
        while q + 1 < num_intervals and knots[q + 1] <= code / s:
            q += 1
        first, moment = sums[cell]
        grad_clip += levels[code] * first - moment
        for k in range(num_intervals):
            ramps = first if k < i else 0.
            if k == i:
                ramps = num_intervals * moment - i * first
            ramp = min(max(levels[code] * num_intervals - k, 0.), 1.)
            grad_heights[k] += clip / slopes[q] * (ramps - ramp * first)
    heights = slopes / num_intervals
    mean = (heights * grad_heights).sum()
    return grad_clip, heights * (grad_heights - mean)
