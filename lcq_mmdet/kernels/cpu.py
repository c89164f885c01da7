"""The CPU kernel as torch calls it; only the input is saved in between."""
from typing import Any, Optional

import numba
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcq_mmdet.compat import is_compiling
from lcq_mmdet.functional import lcq_quantize_reference, num_steps
from lcq_mmdet.recompute import close_saved, open_saved

from . import cpu_loops


def _dense_float(x: Tensor, dense: Tensor) -> Tensor:
    """Return ``x`` in float32 and in the memory format of ``dense``."""
    x = _in_type(x, torch.float32)
    if x.stride() == dense.stride():
        return x
    return torch.empty_like(dense, dtype=x.dtype).copy_(x)


def _in_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _use_threads_of_torch() -> None:
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads != numba.get_num_threads():
        numba.set_num_threads(threads)


def _recompute(ctx: Any) -> Tensor:
    x, = open_saved(ctx)
    y = torch.empty_like(x, dtype=torch.float32)
    dense = _dense_float(x, y)
    _use_threads_of_torch()
    cpu_loops.forward_again(dense.data_ptr(), y.data_ptr(), y.numel(),
                            ctx.state, *ctx.options)
    return _in_type(y, x.dtype)


class _Quantize(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, theta: Tensor, bits: int,
                signed: bool, offset: Optional[Tensor],
                normalized: bool) -> Tensor:
        # empty_like is dense for every input, and x takes on its strides.
        y = torch.empty_like(x, dtype=torch.float32)
        dense = _dense_float(x, y)
        heights = theta.float().softmax(0)
        ctx.options = len(heights), num_steps(bits, signed), signed, normalized
        _use_threads_of_torch()
        ctx.state = cpu_loops.forward(
            dense.data_ptr(), y.data_ptr(), y.numel(), heights.data_ptr(),
            clip.item(), 0. if offset is None else offset.item(), *ctx.options)
        ctx.dtypes = (theta.dtype, clip.dtype,
                      None if offset is None else offset.dtype)
        ctx.save_for_backward(x)
        ctx.recompute = _recompute
        return _in_type(y, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, = close_saved(ctx)
        dx = torch.empty_like(x, dtype=torch.float32)
        dense, grad = _dense_float(x, dx), _dense_float(grad, dx)
        _use_threads_of_torch()
        grads = cpu_loops.backward(dense.data_ptr(), grad.data_ptr(),
                                   dx.data_ptr(), dx.numel(), ctx.state,
                                   *ctx.options)
        grad_theta, grad_clip, grad_offset = (
            None if dtype is None else _in_type(torch.from_numpy(grad), dtype)
            for grad, dtype in zip(grads, ctx.dtypes))
        return (_in_type(dx, x.dtype), grad_clip, grad_theta, None, None,
                grad_offset, None)


def lcq_quantize_cpu(x: Tensor,
                     clip: Tensor,
                     theta: Tensor,
                     bits: int,
                     signed: bool,
                     offset: Optional[Tensor] = None,
                     normalized: bool = False) -> Tensor:
    """Quantize on the CPU for :func:`~lcq_mmdet.functional.lcq_quantize`.

    Same arguments, result and gradients. torch.compile cannot look into the
    loops, and makes its own of the reference.
    """
    quantize = (
        lcq_quantize_reference
        if is_compiling() else _Quantize.apply)
    return quantize(x, clip, theta, bits, signed, offset, normalized)
