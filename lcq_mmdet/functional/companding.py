"""Learnable companding quantization: the mathematics, in plain torch.

Shape shorthand: N elements of any shape, K intervals of the compander,
s quantization steps (levels of one sign, zero not counted).

Source of the formulas: K. Yamamoto, "Learnable Companding Quantization for
Accurate Low-bit Neural Networks", CVPR 2021, arXiv:2103.07156.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor

from lcq_mmdet.errors import LCQError

MIN_BITS, MAX_BITS = 2, 8
#: Unit of what does not deviate.
MIN_DEVIATION = 1e-5


def num_steps(bits: int, signed: bool) -> int:
    """Count the positive levels, s.

    Args:
        bits: Bit-width, 2 to 8.
        signed: Whether levels are symmetric about 0: one bit is the sign.

    Returns:
        ``2**(bits - 1) - 1`` if signed, ``2**bits - 1`` otherwise.

    Raises:
        LCQError: If ``bits`` is not an integer from 2 to 8.

    Examples:
        >>> num_steps(4, signed=True), num_steps(4, signed=False)
        (7, 15)
    """
    check_bits(bits)
    return 2**(bits - 1) - 1 if signed else 2**bits - 1


def check_bits(bits: int, key: str = 'bits') -> int:
    """Return ``bits`` if it is an integer from 2 to 8.

    Raises:
        LCQError: Otherwise; the message names ``key``.
    """
    if (isinstance(bits, bool) or not isinstance(bits, int)
            or not MIN_BITS <= bits <= MAX_BITS):
        raise LCQError(f'{key}={bits!r}: must be an integer from {MIN_BITS} '
                       f'to {MAX_BITS}')
    return bits


def slopes_and_knots(theta: Tensor) -> Tuple[Tensor, Tensor]:
    """Turn logits into the piecewise linear compander f.

    With p = softmax(theta), interval k starts at the knot
    beta_k = p_0 + ... + p_(k-1) and rises with slope gamma_k = K p_k.

    Args:
        theta: Logits of the interval heights, shape (K).

    Returns:
        Slopes gamma and knots beta, shape (K) each; beta_0 = 0.
    """
    heights = theta.softmax(0)
    # Not cumsum, which is not deterministic on a GPU; it, too, adds up in
    # float64 on the CPU.
    ends = heights.double().expand(len(theta), -1).tril().sum(1)
    return heights * len(theta), ends.to(theta.dtype) - heights


def interval_of_input(v: Tensor, num_intervals: int) -> Tensor:
    """Number the intervals that magnitudes in [0, 1] lie in, int64."""
    return (v * num_intervals).long().clamp(0, num_intervals - 1)


def interval_of_output(u: Tensor, knots: Tensor) -> Tensor:
    """Number the intervals that companded magnitudes lie in, int64.

    It is for few values: each is compared with all knots.
    """
    # Not searchsorted, which ONNX has not.
    return (u.unsqueeze(-1) >= knots[1:].detach()).sum(-1)


def compress(v: Tensor, theta: Tensor) -> Tensor:
    """Map magnitudes through the compander f.

    f(v) = gamma_i (v - d_i) + beta_i for d_i <= v < d_(i+1), d_k = k/K.

    Args:
        v: Magnitudes divided by the clip, in [0, 1], shape (N).
        theta: Logits of the interval heights, shape (K).

    Returns:
        Companded magnitudes in [0, 1], shape (N), dtype of ``v``.

    Examples:
        >>> compress(torch.tensor([0.5]), torch.zeros(16))
        tensor([0.5000])
    """
    slopes, knots = slopes_and_knots(theta)
    i = interval_of_input(v.detach(), len(theta))
    return slopes[i] * (v - i.to(v.dtype) / len(theta)) + knots[i]


def expand(u: Tensor, theta: Tensor, q: Optional[Tensor] = None) -> Tensor:
    """Map companded magnitudes back, f^-1.

    f^-1(u) = (u - beta_q) / gamma_q + d_q for beta_q <= u < beta_(q+1).

    Args:
        u: Companded magnitudes in [0, 1], shape (N).
        theta: Logits of the interval heights, shape (K).
        q: Numbers of the intervals that they lie in, int64, shape (N), where
            they are known.

    Returns:
        Magnitudes in [0, 1], shape (N), dtype of ``u``; exactly 1 at 1.

    Examples:
        >>> expand(torch.tensor([0., 0.25, 1.]), torch.zeros(16))
        tensor([0.0000, 0.2500, 1.0000])
    """
    slopes, knots = slopes_and_knots(theta)
    if q is None:
        q = interval_of_output(u.detach(), knots)
    v = (u - knots[q]) / slopes[q] + q.to(u.dtype) / len(theta)
    end = torch.where(u >= 1, 1 - v, torch.zeros_like(v))
    return v + end.detach()


def levels(theta: Tensor, bits: int, signed: bool) -> Tensor:
    """Compute the output magnitudes a quantizer can take.

    Args:
        theta: Logits of the interval heights, shape (K).
        bits: Bit-width, 2 to 8.
        signed: Whether levels are symmetric about 0: one bit is the sign.

    Returns:
        Ascending levels in units of the clip, from 0 to 1, shape (s + 1).
        A symmetric quantizer takes each of them with both signs.

    Examples:
        >>> levels(torch.zeros(16), bits=2, signed=False)
        tensor([0.0000, 0.3333, 0.6667, 1.0000])
    """
    return expand(grid(theta, num_steps(bits, signed)), theta)


def grid(theta: Tensor, s: int) -> Tensor:
    """List what companded magnitudes are rounded to, shape (s + 1)."""
    return torch.arange(s + 1, dtype=theta.dtype, device=theta.device) / s


def is_half(x: Tensor) -> bool:
    """Tell whether values are floating, and of less bits than float32."""
    return x.is_floating_point() and torch.finfo(x.dtype).bits < 32


def widened(x: Tensor) -> Tensor:
    """Return what is in half precision in float32, and else ``x``."""
    return x.float() if is_half(x) else x


def deviation(x: Tensor) -> Tensor:
    """Compute the standard deviation of all values, 1e-5 or more.

    On the CPU it is taken in float64 and the same whoever computes it.

    Returns:
        Deviation about the mean, in units of ``x``, shape (), float32 or
        float64.

    Examples:
        >>> deviation(torch.tensor([1., 3.]))
        tensor(1.)
    """
    values = x.double() if x.device.type == 'cpu' else widened(x)
    return values.std(correction=0).to(
        widened(x).dtype).clamp(min=MIN_DEVIATION)
