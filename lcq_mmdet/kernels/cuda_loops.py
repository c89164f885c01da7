"""The loops of the CUDA kernel, in Triton: one pass forward, one backward.

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
import triton
import triton.language as tl

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
def forward(x_ptr, y_ptr, clip_ptr, offset_ptr, intervals, outputs, size,
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
def backward(x_ptr, dy_ptr, dx_ptr, sums_ptr, clip_ptr, offset_ptr, intervals,
             levels, size, tiles, K: tl.constexpr, S: tl.constexpr,
             SIGNED: tl.constexpr, COLUMNS: tl.constexpr,
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
