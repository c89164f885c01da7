"""What every kernel needs from the compander, and what it gives back.

The K interval edges and the s thresholds cut [0, 1) into K + s cells, inside
which the interval i and the code c of the output level are constant; the
index of a cell is i + c. A kernel therefore needs three small tables
forward, and backward only two sums a cell.

Where choosing among cells is dear, K sums of ramps do as well, for any
number of bits. With the ramp r_k(v) = clamp(K v - k, 0, 1), the part of
interval k that is below v, f(v) = sum_k p_k r_k(v). So, at the level g of v
in the interval q,

    dQ/dp_k = sgn(x) a (r_k(v) - r_k(g)) / gamma_q.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from lcq_mmdet.functional import levels, num_steps, slopes_and_knots


class Tables(NamedTuple):
    """Look-up tables of one quantizer.

    Attributes:
        slopes: Slope of f in each interval, shape (K).
        knots: Start of each interval in the image of f, shape (K).
        levels: Output magnitudes in units of the clip, shape (s + 1).
    """
    slopes: Tensor
    knots: Tensor
    levels: Tensor


def make_tables(theta: Tensor, bits: int, signed: bool) -> Tables:
    """Build the tables from logits ``theta``, shape (K)."""
    theta = theta.detach()
    return Tables(*slopes_and_knots(theta), levels(theta, bits, signed))


def num_cells(theta: Tensor, bits: int, signed: bool) -> int:
    """Count the cells inside the clip, K + s."""
    return len(theta) + num_steps(bits, signed)


def parameter_gradients(sums: Tensor, outside: Tensor, clip: Tensor,
                        theta: Tensor,
                        tables: Tables) -> 'tuple[Tensor, Tensor]':
    """Turn sums over cells into the gradients of clip and theta.

    Args:
        sums: Sums over the elements of each cell of dy sgn(x) and of
            dy |x|, the latter divided by the clip, shape (2, K + s).
        outside: Sum of dy sgn(x) where \\|x\\| >= clip, shape ().
        clip: The clip a, shape ().
        theta: Logits, shape (K).
        tables: What :func:`make_tables` gave for ``theta``.

    Returns:
        Gradients of clip, shape (), and of theta, shape (K), in the dtype of
        ``sums``.
    """
    slopes, knots, values = (table.to(sums.dtype) for table in tables)
    num_intervals, s = len(slopes), len(values) - 1
    first, moment = sums

    # Interval i begins at the cell i + (code of its knot).
    index = torch.arange(num_intervals + s, device=sums.device)
    begins = ((tables.knots[1:] * s).round().long() +
              index[1:num_intervals])
    i = torch.searchsorted(begins, index, right=True)
    # A theta of NaN has no order, and i is anything.
    code = (index - i).clamp(0, s)
    u = code.to(sums.dtype) / s
    q = torch.searchsorted(knots[1:].contiguous(), u, right=True)

    grad_clip = values[code] @ first - moment.sum() + outside
    rise = clip * first / slopes[q]
    grad_slopes = torch.zeros_like(slopes).index_add_(
        0, i, clip * moment / slopes[q] - rise * i / num_intervals)
    grad_slopes.index_add_(0, q, -rise * (u - knots[q]) / slopes[q])
    grad_knots = torch.zeros_like(knots).index_add_(0, i, rise)
    grad_knots.index_add_(0, q, -rise)

    heights = slopes / num_intervals
    later = grad_knots.sum() - grad_knots.cumsum(0)
    grad_heights = num_intervals * grad_slopes + later
    return grad_clip, _through_softmax(heights, grad_heights)


def _through_softmax(heights: Tensor, grad_heights: Tensor) -> Tensor:
    return heights * (grad_heights - (heights * grad_heights).sum())


def level_slopes(tables: Tables) -> Tensor:
    """Look up the slope of f at each level, gamma_q, shape (s + 1)."""
    codes = torch.arange(len(tables.levels), device=tables.levels.device)
    u = codes.to(tables.levels.dtype) / (len(codes) - 1)
    q = torch.searchsorted(tables.knots[1:].contiguous(), u, right=True)
    return tables.slopes[q]


def gradients_from_ramps(sums: Tensor, clip_sum: Tensor, clip: Tensor,
                         theta: Tensor) -> 'tuple[Tensor, Tensor]':
    """Turn sums of ramps into the gradients of clip and theta.

    Args:
        sums: Sums over the elements inside the clip of
            dy sgn(x) (r_k(v) - r_k(g)) / gamma_q, shape (K).
        clip_sum: Sum over the elements of dy sgn(x) times g - v inside the
            clip, times 1 outside, shape ().
        clip: The clip a, shape ().
        theta: Logits, shape (K).

    Returns:
        Gradients of clip, shape (), and of theta, shape (K).
    """
    return clip_sum, _through_softmax(theta.softmax(0), clip * sums)
