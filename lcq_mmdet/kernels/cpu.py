"""The CPU kernel as torch calls it; only the input is kept in between."""
from typing import Optional

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcq_mmdet.functional import lcq_quantize_reference, num_steps

from . import cpu_loops
from .again import close_saved, open_saved


def _flat(x: Tensor) -> np.ndarray:
    """View a dense tensor, whatever its memory format, as one dimension."""
    x = x.detach()
    if x.is_contiguous():
        return x.view(-1).numpy()
    return x.as_strided((x.numel(), ), (1, )).numpy()


def _dense_float(x: Tensor, dense: Tensor) -> Tensor:
    """Return ``x`` in float32 and in the memory format of ``dense``."""
    x = x.float()
    if x.stride() == dense.stride():
        return x
    return torch.empty_like(dense, dtype=x.dtype).copy_(x)


def _use_threads_of_torch() -> None:
    numba.set_num_threads(
        min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


def _again(ctx) -> Tensor:
    x, = open_saved(ctx)
    y = torch.empty_like(x, dtype=torch.float32)
    _use_threads_of_torch()
    cpu_loops.forward_again(
        _flat(_dense_float(x, y)), _flat(y), *ctx.found, ctx.options[0])
    return y.to(x.dtype)


class _Quantize(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, clip, theta, bits, signed, offset, normalized):
        # empty_like is dense for every input, and x takes on its strides.
        y = torch.empty_like(x, dtype=torch.float32)
        scalars = [
            np.float32(0 if value is None else value.item())
            for value in (clip, offset)
        ]
        _use_threads_of_torch()
        ctx.found = cpu_loops.forward(
            _flat(_dense_float(x, y)), _flat(y),
            theta.float().softmax(0).numpy(), *scalars,
            num_steps(bits, signed), signed, normalized)
        ctx.options = signed, normalized
        ctx.dtypes = [
            None if value is None else value.dtype
            for value in (theta, clip, offset)
        ]
        ctx.save_for_backward(x)
        ctx.again = _again
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, = close_saved(ctx)
        dx = torch.empty_like(x, dtype=torch.float32)
        _use_threads_of_torch()
        grads = cpu_loops.backward(
            _flat(_dense_float(x, dx)), _flat(_dense_float(grad, dx)),
            _flat(dx), *ctx.found, *ctx.options)
        grad_theta, grad_clip, grad_offset = (
            None if dtype is None else torch.from_numpy(grad).to(dtype)
            for grad, dtype in zip(grads, ctx.dtypes))
        return (dx.to(x.dtype), grad_clip, grad_theta, None, None,
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
        if torch.compiler.is_compiling() else _Quantize.apply)
    return quantize(x, clip, theta, bits, signed, offset, normalized)
