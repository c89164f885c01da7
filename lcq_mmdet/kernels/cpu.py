"""The CPU kernel: fused loops over all cores, compiled by numba on first use.

One pass forward and one backward; only the input is kept in between. The
work is cut into the same chunks whatever the number of threads, so results
do not depend on it.
"""
from typing import Iterable, Optional

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cells import make_tables

_TILE = 512
_MAX_CHUNKS = 64
_LANES = 4


@njit(inline='always')
def _locate(x, clip, offset, slopes, knots, s, signed, v, interval, code):
    """Find magnitude over clip, interval and code of a tile of float32.

    Both indices are within their tables whatever theta and clip are. Short
    loops over small buffers, because these the compiler vectorizes.
    """
    num_intervals = np.float32(len(slopes))
    for n in range(len(x)):
        magnitude = (
            abs(x[n]) if signed else max(x[n] - offset, np.float32(0)))
        ratio = magnitude / clip
        v[n] = ratio if magnitude < clip else np.float32(1)
        interval[n] = np.int32(v[n] * num_intervals)
    for n in range(len(x)):
        i = min(interval[n], np.int32(len(slopes) - 1))
        u = slopes[i] * (v[n] - np.float32(i) / num_intervals) + knots[i]
        interval[n] = i
        code[n] = np.int32(np.rint(u * s) if u < np.float32(1) else s)


@njit(inline='always')
def _chunk_size(size):
    tiles = (size + _TILE - 1) // _TILE
    return (tiles + _MAX_CHUNKS - 1) // _MAX_CHUNKS * _TILE


@njit(parallel=True, cache=True)
def _forward(x, y, clip, offset, slopes, knots, outputs, signed):
    s = np.float32(len(outputs) - 1)
    chunk = _chunk_size(len(x))
    for b in prange((len(x) + chunk - 1) // chunk):
        v = np.empty(_TILE, np.float32)
        interval = np.empty(_TILE, np.int32)
        code = np.empty(_TILE, np.int32)
        for start in range(b * chunk, min((b + 1) * chunk, len(x)), _TILE):
            tile = x[start:start + _TILE]
            _locate(tile, clip, offset, slopes, knots, s, signed, v, interval,
                    code)
            for n in range(len(tile)):
                value = outputs[code[n]]
                value = -value if signed & (tile[n] < np.float32(0)) else value
                y[start + n] = value if tile[n] == tile[n] else tile[n]


@njit(parallel=True, cache=True)
def _backward(x, dy, dx, clip, offset, slopes, knots, levels, signed):
    """Write dx; return sums of each chunk, (chunks, 2, K + s + 2).

    The last two cells hold what lies outside the clip, and what lies below
    the levels of a quantizer that is not signed.
    """
    s = np.float32(len(levels) - 1)
    cells = len(slopes) + len(levels) + 1
    chunk = _chunk_size(len(x))
    chunks = (len(x) + chunk - 1) // chunk
    sums = np.zeros((chunks, 2, cells))
    for b in prange(chunks):
        lanes = np.zeros((_LANES, cells, 2))
        v = np.empty(_TILE, np.float32)
        interval = np.empty(_TILE, np.int32)
        code = np.empty(_TILE, np.int32)
        first = np.empty(_TILE, np.float32)
        for start in range(b * chunk, min((b + 1) * chunk, len(x)), _TILE):
            tile, grad = x[start:start + _TILE], dy[start:start + _TILE]
            _locate(tile, clip, offset, slopes, knots, s, signed, v, interval,
                    code)
            for n in range(len(tile)):
                inside = v[n] < np.float32(1)
                above = tile[n] - offset > np.float32(0)
                passes = inside & (above | signed)
                dx[start + n] = grad[n] if passes else np.float32(0)
                first[n] = (grad[n] if above | (not signed) else
                            -grad[n] if tile[n] < np.float32(0) else
                            np.float32(0))
                cell = interval[n] + code[n] if inside else cells - 2
                code[n] = cell if above | signed else cells - 1
            for n in range(len(tile)):
                lane = n % _LANES
                lanes[lane, code[n], 0] += first[n]
                lanes[lane, code[n], 1] += first[n] * v[n]
        for lane in range(_LANES):
            for c in range(cells):
                sums[b, 0, c] += lanes[lane, c, 0]
                sums[b, 1, c] += lanes[lane, c, 1]
    return sums


@njit(cache=True)
def _parameter_gradients(sums, clip, slopes, knots, levels):
    """Turn what :func:`_backward` sums into gradients of clip and theta.

    In the interval i, the ramps r_k(v) of ``cells.py`` are 1 for k < i,
    K v - i for k = i, and 0 for k > i.
    """
    num_intervals, s = len(slopes), len(levels) - 1
    grad_clip = sums[0, num_intervals + s]
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
        first, moment = sums[0, cell], sums[1, cell]
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


def _flat(x: Tensor) -> np.ndarray:
    """View a dense tensor, whatever its memory format, as one dimension."""
    return x.detach().as_strided((x.numel(), ), (1, )).numpy()


def _arrays(tables: Iterable[Tensor]) -> 'list[np.ndarray]':
    return [table.numpy() for table in tables]


def _scalars(clip: Tensor, offset: Optional[Tensor]) -> 'list[np.float32]':
    return [
        np.float32(0 if value is None else value.item())
        for value in (clip, offset)
    ]


def _use_threads_of_torch() -> None:
    numba.set_num_threads(
        min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


class _Quantize(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, clip, theta, bits, signed, offset):
        # empty_like is dense for every input, and x takes on its strides.
        y = torch.empty_like(x, dtype=torch.float32)
        dense = x if x.stride() == y.stride() else y.copy_(x)
        dense = dense.float()
        tables = make_tables(theta.float(), bits, signed)
        _use_threads_of_torch()
        outputs = clip.float() * tables.levels
        if offset is not None:
            outputs = offset.float() + outputs
        _forward(_flat(dense), _flat(y), *_scalars(clip, offset),
                 *_arrays(tables._replace(levels=outputs)), signed)
        ctx.save_for_backward(x, clip, theta, offset, *tables)
        ctx.signed = signed
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, clip, theta, offset, *tables = ctx.saved_tensors
        dx = torch.empty_like(x, dtype=torch.float32)
        dense = [
            t.float() if t.stride() == dx.stride() else
            torch.empty_like(dx).copy_(t) for t in (x, grad)
        ]
        scalars, arrays = _scalars(clip, offset), _arrays(tables)
        _use_threads_of_torch()
        sums = _backward(_flat(dense[0]), _flat(dense[1]), _flat(dx), *scalars,
                         *arrays, ctx.signed).sum(0)
        grad_clip, grad_theta = _parameter_gradients(sums, scalars[0], *arrays)
        return (dx.to(x.dtype), clip.new_tensor(grad_clip),
                torch.from_numpy(grad_theta).to(theta.dtype), None, None,
                None if offset is None else offset.new_tensor(
                    sums[0, -2:].sum()))


def lcq_quantize_cpu(x: Tensor,
                     clip: Tensor,
                     theta: Tensor,
                     bits: int,
                     signed: bool,
                     offset: Optional[Tensor] = None) -> Tensor:
    """Quantize on the CPU for :func:`~lcq_mmdet.functional.lcq_quantize`.

    Same arguments, result and gradients.
    """
    return _Quantize.apply(x, clip, theta, bits, signed, offset)
