"""What every kernel needs from the compander, and what it gives back.

The K interval edges and the s thresholds cut [0, 1) into K + s cells, inside
which the interval i and the code c of the output level are constant; the
index of a cell is i + c. A kernel therefore needs three small tables
forward, and backward only two sums a cell.

The gradient of theta follows from ramps. With r_k(v) = clamp(K v - k, 0, 1),
the part of interval k that is below v, f(v) = sum_k p_k r_k(v). So, at the
level g of v in the interval q,

    dQ/dp_k = sgn(x) a (r_k(v) - r_k(g)) / gamma_q,

and inside a cell r_k is linear. Where choosing among cells is dear, the K
ramps are summed themselves, whose number does not depend on the bits.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from lcq_mmdet.functional import levels, slopes_and_knots


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
