"""Learned step size quantization (LSQ), on the grid of the other kernels.

Levels are integers times a step s, from -Qn s to Qp s: with b bits
Qn = 2^(b-1) and Qp = 2^(b-1) - 1 where there are negative values, and else
Qn = 0 and Qp = 2^b - 1.

Source of the formulas: S. K. Esser et al., "Learned Step Size Quantization",
ICLR 2020, arXiv:1902.08153.
"""
import math
from typing import Optional, Tuple

from torch import Tensor

from .companding import num_steps


def initial_step(x: Tensor, bits: int, signed: bool) -> Tensor:
    """Compute the step that training starts from, 2 mean|x| / sqrt(Qp).

    Args:
        x: A weight, or samples of an input, any shape.
        bits: Bit-width, 2 to 8.
        signed: Whether there are negative values.

    Returns:
        Step in units of ``x``, shape ().
    """
    return 2 * x.abs().mean() / math.sqrt(num_steps(bits, signed))


def step_gradient_scale(num_values: int, bits: int, signed: bool) -> float:
    """Compute what the gradient of the step is multiplied by.

    Args:
        num_values: Values of the weight, or of an item of the input, N.
        bits: Bit-width, 2 to 8.
        signed: Whether there are negative values.

    Returns:
        1 / sqrt(N Qp).
    """
    return 1 / math.sqrt(max(num_values, 1) * num_steps(bits, signed))


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x`` as it is, with its gradient multiplied by a factor.

    Examples:
        >>> import torch
        >>> x = torch.tensor(3., requires_grad=True)
        >>> y = scale_gradient(x, 0.5)
        >>> y.backward()
        >>> y.item(), x.grad.item()
        (3.0, 0.5)
    """
    return x.detach() + factor * (x - x.detach())


def grid_of_step(step: Tensor, bits: int,
                 signed: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """Express the grid of a step as the clip and the offset of a quantizer.

    With them and theta = 0, :func:`~lcq_mmdet.functional.lcq_quantize` with
    ``signed=False`` gives ``step * round(clamp(x / step, -Qn, Qp))``, and
    through them the step gets the gradient of LSQ: round(x/s) - x/s inside,
    -Qn below and Qp above.

    Args:
        step: Distance of neighbouring levels, positive, shape ().
        bits: Bit-width, 2 to 8.
        signed: Whether there are negative values.

    Returns:
        Clip (Qn + Qp) s and offset -Qn s, shape () each; the offset is
        ``None`` where the lowest level is 0.

    Examples:
        >>> import torch
        >>> grid_of_step(torch.tensor(0.5), bits=2, signed=True)
        (tensor(1.5000), tensor(-1.))
    """
    steps = num_steps(bits, signed=False)
    clip = steps * step
    below = steps - num_steps(bits, signed)
    return clip, -below * step if signed else None
