"""Gradients that differ from those of the quantizer itself."""
from typing import Optional

import torch
from torch import Tensor

from .companding import (compress, interval_of_input, interval_of_output,
                         num_steps, slopes_and_knots)


class _ScaleGradient(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        factor, = ctx.saved_tensors
        return grad * factor, None


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """Return ``x`` as it is, with a gradient that is multiplied.

    Args:
        x: Values, any shape.
        factor: What the gradient is multiplied by, shape of ``x``; it has no
            gradient itself.

    Examples:
        >>> x = torch.ones(2, requires_grad=True)
        >>> scale_gradient(x, torch.tensor([0.5, 2.])).sum().backward()
        >>> x.grad
        tensor([0.5000, 2.0000])
    """
    return _ScaleGradient.apply(x, factor)


@torch.no_grad()
def input_slope(x: Tensor,
                clip: Tensor,
                theta: Tensor,
                bits: int,
                signed: bool,
                offset: Optional[Tensor] = None) -> Tensor:
    """Compute the slope of the quantizer where round has slope one.

    That is the chain rule through f and f^-1, gamma_i / gamma_q, where the
    quantizer's own gradient of x takes companding for the identity. Same
    arguments as :func:`~lcq_mmdet.functional.lcq_quantize_reference`.

    Returns:
        Slopes, positive, shape of ``x``; outside the clip, where the
        quantizer has none, some value.

    Examples:
        >>> input_slope(torch.tensor([0.2, 0.6]), torch.tensor(1.),
        ...             torch.zeros(16), bits=2, signed=False)
        tensor([1., 1.])
    """
    magnitude = x.abs() if signed else x - (0 if offset is None else offset)
    v = (magnitude / clip).clamp(0, 1).nan_to_num()
    s = num_steps(bits, signed)
    u = (compress(v, theta) * s).round() / s
    slopes, knots = slopes_and_knots(theta)
    i, q = interval_of_input(v, len(theta)), interval_of_output(u, knots)
    return (slopes[i] / slopes[q]).to(x.dtype)
