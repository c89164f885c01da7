"""The CUDA kernel, in Triton: one pass forward, one backward.

Only the input and small tables are kept in between. Nothing is scattered,
nothing is added atomically and nothing waits for the host: each program
writes sums of its own, which one small reduction adds up, so a result is the
same every time. The work is cut into the same tiles on every device.

What an element costs does not depend on the number of bits. Its cell is found
without a search, as in the reference: the interval of v is the whole part of
K v, the code follows from one product, and the tables are a few cache lines.
Backward, choosing among K + s cells for the two sums of each would take 3
instructions a cell: 93 for 4 unsigned bits, 813 for 8. The ramps of
``cells.py`` take 4 an interval: 64 for K = 16. Compiled for Hopper by Triton
3.7, that makes 57 to 61 instructions an element forward and 126 to 131
backward at K = 16. Not measured on a GPU.
"""
from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

from lcq_mmdet.functional import deviation
from lcq_mmdet.recompute import close_saved, open_saved

from .cells import Tables, gradients_from_ramps, level_slopes, make_tables

_FORWARD_TILE = 1024
_BACKWARD_TILE = 512
#: Sums of all threads of a program: 64 a thread, more spill its registers.
_MAX_SUMS = 8192
_MAX_PROGRAMS = 1024
#: Float32 around 1.5 * 2**23 are the whole numbers, so adding it rounds, half
#: to even, and leaves the whole part in the low bits.
_ROUND = tl.constexpr(12582912.)
_ROUND_BITS = tl.constexpr(0x4B400000)


@triton.jit
def _locate(x, clip, offset, intervals, K: tl.constexpr, S: tl.constexpr,
            SIGNED: tl.constexpr):
    """Find what is inside the clip, magnitude over clip, and code.

    Both indices are within their tables whatever theta and clip are.
    """
    if SIGNED:
        magnitude = tl.abs(x)
    else:
        magnitude = tl.where(x > offset, x - offset, 0.)
    inside = magnitude < clip
    v = tl.where(inside, tl.div_rn(magnitude, clip), 1.)
    i = intervals + tl.minimum((v * K).to(tl.int32), K - 1)
    slope, knot, start = tl.load(i), tl.load(i + K), tl.load(i + 2 * K)
    u = slope * (v - start) + knot
    code = (u * S + _ROUND).to(tl.int32, bitcast=True) - _ROUND_BITS
    return inside, v, tl.minimum(tl.maximum(code, 0), S)


@triton.jit
def _forward(x_ptr, y_ptr, clip_ptr, offset_ptr, intervals, outputs, size,
             K: tl.constexpr, S: tl.constexpr, SIGNED: tl.constexpr,
             TILE: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    x = tl.load(x_ptr + n, mask=n < size, other=0.).to(tl.float32)
    clip, offset = tl.load(clip_ptr), tl.load(offset_ptr)
    inside, v, code = _locate(x, clip, offset, intervals, K, S, SIGNED)
    y = tl.load(outputs + code).to(tl.float32)
    if SIGNED:
        y = tl.where(x < 0, -y, y)
    y = tl.where(x == x, y, x)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=n < size)


@triton.jit(do_not_specialize=['tiles'])
def _backward(x_ptr, dy_ptr, dx_ptr, sums_ptr, clip_ptr, offset_ptr,
              intervals, levels, size, tiles, K: tl.constexpr,
              S: tl.constexpr, SIGNED: tl.constexpr, COLUMNS: tl.constexpr,
              TILE: tl.constexpr):
    """Write dx, and K + 2 sums for each program.

    They are the ramps', the clip's and the offset's.

    A tile is a column, so that every thread holds its elements' K products
    and adds across threads only once, at the end.
    """
    program = tl.program_id(0).to(tl.int64)
    clip, offset = tl.load(clip_ptr), tl.load(offset_ptr)
    columns = tl.arange(0, COLUMNS)
    k = columns.to(tl.float32)[None, :]
    sums = tl.zeros((TILE, COLUMNS), tl.float32)
    clip_sums = tl.zeros((TILE, 1), tl.float32)
    offset_sums = tl.zeros((TILE, 1), tl.float32)
    for tile in range(tiles):
        start = (program * tiles + tile) * TILE
        n = (start + tl.arange(0, TILE))[:, None]
        x = tl.load(x_ptr + n, mask=n < size, other=0.).to(tl.float32)
        dy = tl.load(dy_ptr + n, mask=n < size, other=0.).to(tl.float32)
        inside, v, code = _locate(x, clip, offset, intervals, K, S, SIGNED)
        level = tl.load(levels + code)
        steepness = tl.load(levels + S + 1 + code)

        above = x > offset
        passes = inside if SIGNED else inside & above
        dx = tl.where(passes, dy, 0.)
        offset_sums += dy - dx
        tl.store(dx_ptr + n, dx.to(dx_ptr.dtype.element_ty), mask=n < size)

        first = tl.where(above, dy, 0.)
        if SIGNED:
            first = tl.where(x < 0, -dy, first)
        clip_sums += first * tl.where(inside, level - v, 1.)
        weight = tl.where(inside, first, 0.) * steepness
        ramps = (tl.clamp(v * K - k, 0., 1.) -
                 tl.clamp(level * K - k, 0., 1.))
        sums = tl.fma(tl.broadcast_to(weight, (TILE, COLUMNS)), ramps, sums)
    row = sums_ptr + program * (K + 2)
    tl.store(row + columns, tl.sum(sums, 0), mask=columns < K)
    tl.store(row + K, tl.sum(clip_sums))
    tl.store(row + K + 1, tl.sum(offset_sums))


def _pack(tables: Tables) -> Tuple[Tensor, Tensor]:
    """Put together what one index looks up.

    Returns:
        Slope, knot and start of each interval, shape (3, K); and output over
        the clip and slope of f^-1 of each code, shape (2, s + 1).
    """
    K = len(tables.slopes)
    starts = torch.arange(
        K, dtype=torch.float32, device=tables.slopes.device) / K
    return (torch.stack([tables.slopes, tables.knots, starts]),
            torch.stack([tables.levels, 1 / level_slopes(tables)]))


def _dense_like(x: Tensor, dense: Tensor) -> Tensor:
    """Return ``x`` with the strides of ``dense``, a copy only if needed."""
    if x.stride() == dense.stride():
        return x
    return torch.empty_like(dense, dtype=x.dtype).copy_(x)


# Custom operations, because torch.compile cannot look into the interpreter
# that runs these kernels without a GPU. The small tensors around them are
# left to it.
@custom_op('lcq_mmdet::quantize_cuda', mutates_args=())
def _quantize(x: Tensor, clip: Tensor, theta: Tensor, offset: Tensor,
              intervals: Tensor, levels: Tensor, signed: bool) -> Tensor:
    # empty_like is dense for every input, and x takes on its strides.
    y = torch.empty_like(x)
    clip, offset = clip.float(), offset.float()
    with torch.cuda.device_of(x):
        _forward[(triton.cdiv(x.numel(), _FORWARD_TILE), )](
            _dense_like(x, y),
            y,
            clip,
            offset,
            intervals,
            (offset + clip * levels[0]).to(x.dtype),
            x.numel(),
            K=len(theta),
            S=levels.shape[1] - 1,
            SIGNED=signed,
            TILE=_FORWARD_TILE,
            enable_fp_fusion=False)
    return y


@custom_op('lcq_mmdet::quantize_cuda_backward', mutates_args=())
def _quantize_backward(dy: Tensor, x: Tensor, clip: Tensor, offset: Tensor,
                       intervals: Tensor, levels: Tensor,
                       signed: bool) -> Tuple[Tensor, Tensor]:
    """Compute dx and the K + 2 sums that ``_backward`` names."""
    dx = torch.empty_like(x)
    K = intervals.shape[1]
    columns = triton.next_power_of_2(K)
    tile = max(min(_BACKWARD_TILE, _MAX_SUMS // columns), 1)
    tiles = triton.cdiv(x.numel(), tile)
    tiles_each = triton.cdiv(tiles, _MAX_PROGRAMS)
    programs = triton.cdiv(tiles, tiles_each)
    sums = x.new_empty(programs, K + 2, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _backward[(programs, )](
            _dense_like(x, dx),
            _dense_like(dy, dx),
            dx,
            sums,
            clip.float(),
            offset.float(),
            intervals,
            levels,
            x.numel(),
            tiles_each,
            K=K,
            S=levels.shape[1] - 1,
            SIGNED=signed,
            COLUMNS=columns,
            TILE=tile,
            enable_fp_fusion=False)
    return dx, sums.sum(0, dtype=torch.float64)


@_quantize.register_fake
def _(x, clip, theta, offset, intervals, levels, signed):
    return torch.empty_like(x)


@_quantize_backward.register_fake
def _(dy, x, clip, offset, intervals, levels, signed):
    sums = x.new_empty(intervals.shape[1] + 2, dtype=torch.float64)
    return torch.empty_like(x), sums


def _setup_context(ctx, inputs, output):
    *tensors, ctx.signed = inputs
    ctx.save_for_backward(*tensors)
    ctx.recompute = _recompute


def _recompute(ctx):
    return _quantize(*open_saved(ctx), ctx.signed)


def _autograd(ctx, dy):
    x, clip, theta, offset, intervals, levels = close_saved(ctx)
    dx, sums = _quantize_backward(dy, x, clip, offset, intervals, levels,
                                  ctx.signed)
    grad_clip, grad_theta = gradients_from_ramps(sums[:-2], sums[-2],
                                                 clip.double(), theta.double())
    return (dx, grad_clip.to(clip.dtype), grad_theta.to(theta.dtype),
            sums[-1].to(offset.dtype), None, None, None)


_quantize.register_autograd(_autograd, setup_context=_setup_context)


def lcq_quantize_cuda(x: Tensor,
                      clip: Tensor,
                      theta: Tensor,
                      bits: int,
                      signed: bool,
                      offset: Optional[Tensor] = None,
                      normalized: bool = False) -> Tensor:
    """Quantize on a GPU for :func:`~lcq_mmdet.functional.lcq_quantize`.

    Same arguments, result and gradients.
    """
    if offset is None:
        offset = torch.zeros_like(clip)
    if normalized:
        unit = deviation(x)
        clip, offset = clip * unit, offset * unit
    tables = make_tables(theta.float(), bits, signed)
    return _quantize(x, clip, theta, offset, *_pack(tables), signed)
