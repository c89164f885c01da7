"""The quantizer of LSQ, to compare with."""
from typing import Optional

import torch
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import (grid_of_step, initial_step, lcq_quantize,
                                  num_steps, scale_gradient,
                                  step_gradient_scale)

from .quantizer import LCQQuantizer


class LSQQuantizer(LCQQuantizer):
    """Quantize one tensor with a learned step (LSQ).

    S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020. Levels
    are ``step`` times the integers from -2^(b-1) to 2^(b-1) - 1, or from 0 to
    2^b - 1 for an input without negative values. A weight is not normalized.
    The step starts at 2 mean|x| / sqrt(Qp), Qp being the largest integer, and
    its gradient is divided by sqrt(N Qp), N being the number of values of the
    weight, or of one item of the batch that is the input.

    The state is the parameter ``step``, shape (), beside the buffers of an
    :class:`LCQQuantizer`; ``clip`` and ``lowest`` follow from it, and theta
    is 0.
    """
    step: nn.Parameter

    def _add_parameters(self) -> None:
        self.weight_norm = 'none'
        self.step = nn.Parameter(torch.ones(()))
        self.register_buffer('theta', torch.zeros(2), persistent=False)

    @property
    def is_symmetric(self) -> bool:
        """False: there is one negative level more."""
        return False

    @property
    def clip(self) -> Tensor:  # type: ignore[override]
        """Distance of the outermost levels, shape ()."""
        return grid_of_step(self.step, self.bits, self.is_signed)[0]

    @property
    def lowest(self) -> Optional[Tensor]:
        """The lowest level where it is not 0, shape ()."""
        return grid_of_step(self.step, self.bits, self.is_signed)[1]

    def _fit_(self, x: Tensor) -> None:
        if not x.isfinite().all():
            raise LCQError('x: must be finite')
        step = initial_step(x, self.bits, self.is_signed)
        largest = num_steps(self.bits, self.is_signed)
        # Where all values are 0, as with init='constant' of the others.
        self.step.copy_(
            torch.where(step > 0, step, self.config.init_clip / largest))

    def _quantize(self, x: Tensor, normalized: bool = False) -> Tensor:
        # The first dimension of an input counts images.
        num_values = x.numel() if self.is_weight else x.shape[1:].numel()
        step = scale_gradient(
            self.step,
            step_gradient_scale(num_values, self.bits, self.is_signed))
        clip, offset = grid_of_step(step, self.bits, self.is_signed)
        y = lcq_quantize(x, clip, self.theta, self.bits, False, offset)
        return self.requantize(y)
