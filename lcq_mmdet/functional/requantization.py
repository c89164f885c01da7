"""Levels as integers times a step, which integer arithmetic needs."""
from typing import Any, Tuple, TypeVar

import torch
from torch import Tensor

_MIN_STEP = 1e-12
_Bound = TypeVar('_Bound', int, Tensor)


class _RoundToGrid(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, lowest: _Bound,
                highest: _Bound) -> Tensor:
        exact = torch.promote_types(x.dtype, step.dtype)
        codes = (x.to(exact) / step).round_()
        return codes.clamp_(lowest, highest).mul_(step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Any, ...]:
        return grad, None, None, None


def round_to_grid(x: Tensor, step: Tensor, lowest: _Bound,
                  highest: _Bound) -> Tensor:
    """Round to integers times a step, straight-through.

    The gradient of ``x`` goes through as it is; nothing else has one.

    Args:
        x: Values, any shape and floating dtype.
        step: Distance of neighbours, positive, of a shape that fits ``x``.
        lowest: The least integer, a number or shape ().
        highest: The largest integer, of the same type.

    Returns:
        Values on the grid, shape and dtype of ``x``; NaN stays.

    Examples:
        >>> x = torch.tensor([0.3, 9.], requires_grad=True)
        >>> round_to_grid(x, torch.tensor(0.25), lowest=-8, highest=7)
        tensor([0.2500, 1.7500], grad_fn=<_RoundToGridBackward>)
    """
    if torch.jit.is_tracing():
        # A graph holds no function of Python, and no part without gradient.
        rounded = _RoundToGrid.forward(None, x, step, lowest, highest)
        return rounded.detach() + (x - x.detach())
    return _RoundToGrid.apply(x, step, lowest, highest)


@torch.no_grad()
def unsigned_grid(low: Tensor, high: Tensor,
                  bits: int) -> Tuple[Tensor, Tensor]:
    """Cover a range with (code - zero_point) * step, codes of so many bits.

    Args:
        low: Lower end; where it is positive the range starts at 0, which
            always is on the grid.
        high: Upper end, likewise.
        bits: Bits of a code.

    Returns:
        Step and zero point, 0 to 2**bits - 1, dtype and shape of the ends.

    Examples:
        >>> unsigned_grid(torch.tensor(-1.), torch.tensor(2.), bits=2)
        (tensor(1.), tensor(1.))
    """
    largest = 2**bits - 1
    low, high = low.clamp(max=0), high.clamp(min=0)
    step = ((high - low) / largest).clamp(min=_MIN_STEP)
    return step, (-low / step).round().clamp(0, largest)


@torch.no_grad()
def signed_step(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Compute the step with which signed codes cover a range, 0 being 0.

    Codes go from 1 - 2**(bits - 1) to 2**(bits - 1) - 1.

    Examples:
        >>> signed_step(torch.tensor(-6.), torch.tensor(2.), bits=3)
        tensor(2.)
    """
    return torch.maximum(low.abs(), high.abs()) / (2**(bits - 1) - 1)
