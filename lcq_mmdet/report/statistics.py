"""How well a quantizer fits what it gets.

Nothing here waits for the device: all results stay on it.
"""
from typing import Dict

import torch
from torch import Tensor

from lcq_mmdet.functional import sample_stride, slopes_and_knots
from lcq_mmdet.quantization.quantizer import LCQQuantizer

_MAX_SAMPLES = 2**15


class QuantizerStatistics:
    """Statistics of what one quantizer got, in one or more calls.

    A call counts in proportion to its number of values, of which at most
    2**15 are looked at, always the same ones.

    Args:
        quantizer: An initialized quantizer; it is not changed.
    """

    def __init__(self, quantizer: LCQQuantizer) -> None:
        self._quantizer = quantizer
        self._learned: Dict[str, Tensor] = {}
        self._sums: Dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in one call.

        Args:
            x: What the quantizer got, any shape (N) and floating dtype.
            y: What it made of it, shape (N).
        """
        quantizer = self._quantizer
        slopes, _ = slopes_and_knots(quantizer.theta)
        self._learned = dict(clip=quantizer.clip.clone())
        if quantizer.lowest is not None:
            self._learned['offset'] = quantizer.lowest.clone()
        self._learned.update(max_slope=slopes.max(), min_slope=slopes.min())

        stride = sample_stride(x.numel(), _MAX_SAMPLES)
        inputs, outputs, magnitude = (
            t.flatten()[::stride].float()
            for t in (x, y, quantizer.magnitude(x.float())))
        codes = quantizer.codes(magnitude)
        if quantizer.is_symmetric:
            codes = quantizer.num_steps + torch.where(outputs < 0, -codes,
                                                      codes)
        histogram = inputs.new_zeros(quantizer.num_levels).index_add_(
            0, codes, torch.ones_like(inputs))
        clipped = (magnitude < 0) | (magnitude > 1)
        for key, value in dict(
                error=(outputs - inputs).square().sum(),
                power=inputs.square().sum(),
                clipped=clipped.float().sum(),
                histogram=histogram).items():
            self._sums[key] = self._sums.get(key, 0) + stride * value

    def result(self) -> Dict[str, Tensor]:
        """Compute the statistics of all calls so far, shape () each.

        Returns:
            Nothing if there was no call, and else

            - ``clip``, positive, in units of the input, for a normalized
              weight in units of its standard deviation;
            - ``offset``, the lowest level, in the same units, where the
              quantizer has one and its input is signed;
            - ``max_slope`` and ``min_slope`` of the compander, [1, K] and
              [0, 1]; both are 1 where it is the identity;
            - ``error``, sum((Q(x) - x)^2) / sum(x^2), 0 or more;
            - ``level_use``, exp(H) / L with the entropy H of how often each
              of the L levels is taken, [1 / L, 1];
            - ``clipped``, the share of values beyond the outermost levels,
              [0, 1].
        """
        if not self._sums:
            return {}
        sums = self._sums
        num_values = sums['histogram'].sum()
        entropy = torch.special.entr(sums['histogram'] / num_values).sum()
        smallest = torch.finfo(sums['power'].dtype).tiny
        return dict(
            self._learned,
            error=sums['error'] / sums['power'].clamp(min=smallest),
            level_use=entropy.exp() / self._quantizer.num_levels,
            clipped=sums['clipped'] / num_values)
