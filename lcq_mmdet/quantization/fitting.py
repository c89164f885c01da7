"""Fit a quantizer to samples of what it will quantize."""
from typing import Any

from torch import Tensor

from lcq_mmdet.functional import lloyd_max_init, lowest_level, mse_init


def fit_(quantizer: Any, x: Tensor) -> None:
    """Fill clip, theta and offset of a quantizer, in place.

    Args:
        quantizer: An :class:`~lcq_mmdet.LCQQuantizer` that knows whether its
            tensor has negative values.
        x: Finite samples, normalized where it normalizes, shape (N).

    Raises:
        LCQError: If no sample is positive where none may be negative.
    """
    config, offset = quantizer.config, quantizer.lowest
    low, high = x.aminmax()
    nothing_to_fit = not x.any() if offset is None else low == high
    quantizer.theta.zero_()
    if config.init == 'constant' or nothing_to_fit:
        quantizer.clip.fill_(config.init_clip)
        if offset is not None:
            # The middle level is 0, or the one value there is.
            quantizer.clip.mul_(2)
            middle = quantizer.levels()[quantizer.num_steps // 2]
            offset.copy_((low if nothing_to_fit else 0) -
                         quantizer.clip * middle)
        return
    if offset is not None:
        offset.copy_(lowest_level(x, quantizer.bits))
        x = x - offset
    fit = (
        lloyd_max_init if config.init == 'lloyd_max'
        and config.quantizer == 'lcq' else mse_init)
    clip, theta = fit(x, quantizer.bits, quantizer.is_symmetric,
                      len(quantizer.theta))
    quantizer.clip.copy_(clip)
    quantizer.theta.copy_(theta)
