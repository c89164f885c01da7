"""The 8-bit numbers that stand for levels."""
from typing import NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor

from lcq_mmdet.functional import signed_step, unsigned_grid
from lcq_mmdet.quantization.quantizer import LCQQuantizer


class Grid(NamedTuple):
    """Values (code - zero_point) * step, for codes from 0 to 255.

    Attributes:
        step: Distance of neighbours.
        zero_point: Code of 0, 0 to 255.
    """
    step: float
    zero_point: int

    @classmethod
    def between(cls, low: Tensor, high: Tensor, bits: int = 8) -> 'Grid':
        """Make the grid that covers a range and has 0 exactly.

        With less than 8 bits only that many of its codes are in the range.
        """
        step, zero_point = unsigned_grid(low, high, bits)
        return cls(float(step), int(zero_point))

    @classmethod
    @torch.no_grad()
    def of(cls, quantizer: LCQQuantizer, bits: int = 8) -> 'Grid':
        """Make the grid of an input quantizer's range."""
        return cls.between(*quantizer.range(), bits)

    def values(self) -> np.ndarray:
        """List the values of all codes, float32, shape (256)."""
        codes = np.arange(256, dtype=np.float32) - self.zero_point
        return codes * np.float32(self.step)

    def ends(self) -> Tuple[float, float]:
        """Return the lowest and the highest value."""
        low, high = self.values()[[0, -1]]
        return float(low), float(high)

    def round(self, values: Tensor) -> Tensor:
        """Round values to the grid, which saturates, in plain torch."""
        codes = (values.float() / self.step).round() + self.zero_point
        return (codes.clamp(0, 255) - self.zero_point) * self.step

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Round values to codes, uint8, as QuantizeLinear does."""
        codes = np.rint(values / np.float32(self.step)) + self.zero_point
        return codes.clip(0, 255).astype(np.uint8)


@torch.no_grad()
def table(source: Grid, target: Grid, quantizer: LCQQuantizer) -> np.ndarray:
    """Quantize every value of a grid to the levels of a quantizer.

    Returns:
        Codes of the rounded levels on the target grid, by the code on the
        source grid, uint8, shape (256).
    """
    values = torch.from_numpy(source.values()).to(quantizer.clip.device)
    return target.codes(quantizer(values).cpu().numpy())


def bounds(source: Grid, target: Grid) -> np.ndarray:
    """Find the codes on a grid between which the target grid's range is."""
    ends = target.values()[[0, -1]]
    return source.codes(ends)


@torch.no_grad()
def weight_step(quantizer: LCQQuantizer, weight: Tensor) -> np.ndarray:
    """Compute the step of a weight's levels as integers, signed, 0 being 0.

    They are of ``out_bits`` bits, where the settings say so, and else of 8.

    Returns:
        Step in units of the weight, shape () or (out, 1, 1, 1).
    """
    bits = quantizer.config.out_bits or 8
    return (quantizer.scale(weight)
            * signed_step(*quantizer.range(), bits)).cpu().numpy()
