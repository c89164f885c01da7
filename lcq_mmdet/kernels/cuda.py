"""The CUDA kernel as torch calls it; its loops are in cuda_loops.py."""
from typing import Any, Optional, Tuple

import torch
import triton
from torch import Tensor
from torch.library import custom_op

from lcq_mmdet.functional import deviation
from lcq_mmdet.recompute import close_saved, open_saved

from .cells import Tables, gradients_from_ramps, level_slopes, make_tables
from .cuda_loops import backward, forward

_FORWARD_TILE = 1024
_BACKWARD_TILE = 512
#: Sums of all threads of a program: 64 a thread, more spill its registers.
_MAX_SUMS = 8192
_MAX_PROGRAMS = 1024


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
        forward[(triton.cdiv(x.numel(), _FORWARD_TILE), )](
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
    """Compute dx and the K + 2 sums that ``backward`` names."""
    dx = torch.empty_like(x)
    K = intervals.shape[1]
    columns = triton.next_power_of_2(K)
    tile = max(min(_BACKWARD_TILE, _MAX_SUMS // columns), 1)
    tiles = triton.cdiv(x.numel(), tile)
    tiles_each = triton.cdiv(tiles, _MAX_PROGRAMS)
    programs = triton.cdiv(tiles, tiles_each)
    sums = x.new_empty(programs, K + 2, dtype=torch.float32)
    with torch.cuda.device_of(x):
        backward[(programs, )](
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
def _(x: Tensor, clip: Tensor, theta: Tensor, offset: Tensor,
      intervals: Tensor, levels: Tensor, signed: bool) -> Tensor:
    return torch.empty_like(x)


@_quantize_backward.register_fake
def _(dy: Tensor, x: Tensor, clip: Tensor, offset: Tensor, intervals: Tensor,
      levels: Tensor, signed: bool) -> Tuple[Tensor, Tensor]:
    sums = x.new_empty(intervals.shape[1] + 2, dtype=torch.float64)
    return torch.empty_like(x), sums


def _setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    *tensors, ctx.signed = inputs
    ctx.save_for_backward(*tensors)
    ctx.recompute = _recompute


def _recompute(ctx: Any) -> Tensor:
    return _quantize(*open_saved(ctx), ctx.signed)


def _autograd(ctx: Any, dy: Tensor) -> Any:
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
