"""The definition of right: a quantizer of many small operations of torch."""
from typing import Optional

import torch
from torch import Tensor

from lcq_mmdet.errors import LCQError

from .companding import (compress, deviation, expand, grid, interval_of_output,
                         is_half, num_steps, slopes_and_knots, widened)


def check_arguments(x: Tensor, clip: Tensor, theta: Tensor, signed: bool,
                    offset: Optional[Tensor]) -> None:
    """Check shapes, types and devices, without reading a value.

    Raises:
        LCQError: If an argument of :func:`lcq_quantize_reference` does not
            fit the others; the message names it.
    """
    tensors: 'list[tuple[str, Tensor, Optional[int]]]' = [
        ('x', x, None), ('clip', clip, 0), ('theta', theta, 1)
    ]
    if offset is not None:
        if signed:
            raise LCQError('signed=True: a quantizer with an offset has '
                           'levels above it only, set signed=False')
        tensors.append(('offset', offset, 0))
    for name, value, num_dims in tensors:
        if not value.is_floating_point():
            raise LCQError(f'{name}: {value.dtype}, must be of a floating '
                           f'type; convert it with {name}.float()')
        if value.device != x.device:
            raise LCQError(f'{name}: on {value.device} and x on {x.device}; '
                           f'move it with {name}.to(x.device)')
        if num_dims is not None and (value.dim() != num_dims
                                     or not value.numel()):
            raise LCQError(f'{name}: shape {tuple(value.shape)}, must be '
                           f'{"(K)" if num_dims else "()"}')


def lcq_quantize_reference(x: Tensor,
                           clip: Tensor,
                           theta: Tensor,
                           bits: int,
                           signed: bool,
                           offset: Optional[Tensor] = None,
                           normalized: bool = False) -> Tensor:
    """Quantize with learnable companding: the definition of right.

    ``Q(x) = sgn(x) a f^-1(round(s f(|x|/a)) / s)`` for ``|x| < a``, else
    ``sgn(x) a``.

    The gradients are straight-through (round has slope one):
    dQ/dx is 1 inside the clip and 0 outside, dQ/da is
    ``sgn(x) (g(|x|/a) - |x|/a)`` inside and sgn(x) outside, and theta learns
    through both f and f^-1. In a non-negative quantizer x <= 0 gives 0 with
    gradient 0. With an offset b it computes b + Q(x - b), and dQ/db is 1
    where dQ/dx is 0.

    Args:
        x: Values, shape (N), any floating dtype; half precision is computed
            in float32.
        clip: Positive clip a, in units of ``x``, shape ().
        theta: Logits of the interval heights, shape (K).
        bits: Bit-width, 2 to 8.
        signed: Whether the levels are symmetric about 0; else they begin at
            the offset.
        offset: Lowest level of a non-negative quantizer b, in units of ``x``,
            shape (); 0 if it is not given.
        normalized: Whether clip and offset are in units of the standard
            deviation of ``x`` instead, through which it learns, too.

    Returns:
        Quantized values, shape (N), dtype of ``x``.

    Raises:
        LCQError: If ``bits`` is not an integer from 2 to 8, a signed
            quantizer has an offset, or a tensor has a type, shape or device
            that does not fit.

    Examples:
        >>> x = torch.tensor([-2., 0.1, 0.4, 3.], requires_grad=True)
        >>> y = lcq_quantize_reference(
        ...     x, torch.tensor(1.), torch.zeros(16), bits=2, signed=True)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([-1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0])
    """
    s = num_steps(bits, signed)
    check_arguments(x, clip, theta, signed, offset)
    if is_half(x):
        return lcq_quantize_reference(
            widened(x), widened(clip), widened(theta), bits, signed,
            None if offset is None else widened(offset),
            normalized).to(x.dtype)
    if normalized:
        unit = deviation(x)
        clip, offset = clip * unit, None if offset is None else offset * unit
    if offset is not None:
        y = lcq_quantize_reference(x - offset, clip, theta, bits, False)
        return (offset + y).to(x.dtype)
    if not signed:
        x = x.relu()
    sign = x.detach().sign()
    inside = x.detach().abs() < clip.detach()
    x_inside = torch.where(inside, x, torch.zeros_like(x))
    v = x_inside.detach().abs() / clip.detach()
    u = compress(v, theta)
    codes = (u.detach() * s).round()
    u = u + (codes / s - u).detach()
    q = interval_of_output(grid(theta, s), slopes_and_knots(theta)[1])
    q = q[codes.long().clamp(0, s)]
    # Zero in value, these carry the gradients of x and of -|x|/a.
    straight = ((x_inside - x_inside.detach()) - sign * v *
                (clip - clip.detach()))
    y = torch.where(inside, sign * clip * expand(u, theta, q) + straight,
                    sign * clip)
    return torch.where(x.isnan(), x.detach(), y)
