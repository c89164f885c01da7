"""The quantizer of one tensor: what it computes."""
from typing import Optional, Tuple

import torch
from mmengine.dist import is_distributed
from torch import Tensor

from lcq_mmdet.functional import (MIN_DEVIATION, compress, deviation,
                                  lcq_quantize, levels, num_steps,
                                  round_to_grid, signed_step, unsigned_grid,
                                  widened, with_extremes)

from .fitting import fit_
from .state import QuantizerState

_MAX_SAMPLES = 2**16


class LCQQuantizer(QuantizerState):
    """Quantize one tensor with a learned clip and compander.

    A tensor with negative values is quantized as the non-negative x - offset:
    LCQ with the learned offset of LSQ+ (Y. Bhalgat et al., CVPR Workshops
    2020), which is the default. The paper's levels are symmetric about 0; the
    settings can ask for them, and then there is no offset. Both are compared
    in benchmarks/README.md. What is learned and saved, and how it is loaded,
    stands at :class:`~lcq_mmdet.quantization.state.QuantizerState`.

    Note:
        The gradients of clip, theta and offset are not scaled down by the
        number of values, as LSQ does with its step: relative to what they
        belong to they are 0.005 to 3.3 times those of the weights in a small
        RetinaNet at 2 bits, since batch normalization follows.

    Args:
        config: Settings of the layer.
        is_weight: Whether the tensor is the layer's weight, which is signed
            and normalized, or its input.
    """

    @property
    def is_symmetric(self) -> bool:
        """Whether every level but 0 comes with both signs."""
        return self.is_signed and self.offset is None

    @property
    def lowest(self) -> Optional[Tensor]:
        """The offset where it is in use, shape ()."""
        return self.offset if self.is_signed else None

    @property
    def num_steps(self) -> int:
        """Count the levels above the lowest magnitude, s."""
        return num_steps(self.bits, self.is_symmetric)

    @property
    def num_levels(self) -> int:
        """Count all levels, zero among them."""
        return self.num_steps * (2 if self.is_symmetric else 1) + 1

    def levels(self) -> Tensor:
        """List the output magnitudes over the clip, ascending, (s + 1).

        The offset, where there is one, is not added, and nothing is rounded
        to ``out_bits``.
        """
        return levels(self.theta, self.bits, self.is_symmetric)

    def range(self) -> Tuple[Tensor, Tensor]:
        """Return the lowest and the highest level, in units of the scale."""
        if self.is_symmetric:
            return -self.clip, self.clip
        low = torch.zeros_like(self.clip) if self.lowest is None else (
            self.lowest)
        return low, low + self.clip

    def requantize(self, levels: Tensor,
                   scale: Optional[Tensor] = None) -> Tensor:
        """Round levels to integers of ``out_bits`` bits times a step.

        Those of a weight are signed, those of an input above a zero point.

        Args:
            levels: Levels, any shape.
            scale: What :meth:`scale` gives, where levels were multiplied
                by it.

        Returns:
            Levels on the grid, shape of ``levels``, with their gradient; as
            they are without ``out_bits``.
        """
        bits = self.config.out_bits
        if bits is None:
            return levels
        if self.is_weight:
            step, largest = signed_step(*self.range(), bits), 2**(bits - 1) - 1
            if scale is not None:
                step = scale.detach() * step
            return round_to_grid(levels, step, -largest, largest)
        step, zero_point = unsigned_grid(*self.range(), bits)
        return round_to_grid(levels, step, -zero_point,
                             2**bits - 1 - zero_point)

    def scale(self, x: Tensor) -> Tensor:
        """Compute what the tensor is divided by.

        Returns:
            Standard deviation, shape (), or with ``weight_norm='channel'``
            (out, 1, 1, 1). Where all values are alike there is none, and
            their magnitude takes its place.
        """
        if self.weight_norm == 'none':
            return x.new_ones(())
        if self.weight_norm != 'channel':
            return deviation(x)
        dim = tuple(range(1, x.dim()))
        std = x.std(dim, correction=0, keepdim=True)
        magnitude = x.abs().amax(dim, keepdim=True).clamp(min=MIN_DEVIATION)
        return torch.where(std > MIN_DEVIATION, std, magnitude)

    def magnitude(self, x: Tensor) -> Tensor:
        """Map ``x`` to what is companded, in units of the clip.

        Args:
            x: An input or a whole weight, any shape; finite.

        Returns:
            ``|x|`` where levels are symmetric, and else x above the offset;
            what is outside [0, 1] is clipped. Shape of ``x``.
        """
        x = widened(x)
        x = x / self.scale(x)
        if self.is_symmetric:
            x = x.abs()
        elif self.lowest is not None:
            x = x - self.lowest
        return x / self.clip

    def codes(self, magnitude: Tensor) -> Tensor:
        """Round magnitudes to indices of :meth:`levels`, round(s f(v)).

        Args:
            magnitude: What :meth:`magnitude` gives, any shape.

        Returns:
            Codes from 0 to s, int64, shape of ``magnitude``; any of them
            where it is NaN.
        """
        u = compress(magnitude.clamp(0, 1), self.theta)
        return (u * self.num_steps).round().long().clamp(0, self.num_steps)

    @torch.no_grad()
    def initialize_(self, x: Tensor, signed: bool) -> None:
        """Fill clip, theta and offset from samples, in place.

        Where all samples are alike, as in a weight that starts at zero, there
        is nothing to fit and ``init='constant'`` applies.

        Args:
            x: Samples of an input, shape (N), or a weight as it is.
            signed: Whether negative values get levels of their own.

        Raises:
            LCQError: If no sample is positive where ``signed`` is false, or
                one is not finite.
        """
        self.signed.fill_(signed)
        self._read_buffers()
        x = widened(x)
        self._fit_((x / self.scale(x)).flatten())
        self.misfit = None
        self.initialized.fill_(True)
        self._read_buffers()

    def _fit_(self, x: Tensor) -> None:
        fit_(self, with_extremes(x, _MAX_SAMPLES))

    @property
    def has_scale(self) -> bool:
        """Whether each output channel of the weight has a scale of its own."""
        return self.weight_norm == 'channel'

    def factors(self, x: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        """Quantize a weight to few values, which a scale is left out of.

        Args:
            x: Weight, shape (out, ...).

        Returns:
            Quantized values, shape of ``x``, and the scale, shape
            (out, 1, 1, 1), if there is one; the product is what ``forward``
            gives.
        """
        if self.has_scale and not self.is_packed:
            scale = self.scale(x)
            return self._quantize(x / scale), scale
        return self(x), None

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x``, any shape and floating dtype.

        Raises:
            RuntimeError: If clip and theta were never filled in, or a packed
                weight is trained.
        """
        if self.bypass:
            return x
        if self.is_packed:
            if self.training and torch.is_grad_enabled():
                raise RuntimeError(
                    'this weight came from a packed file, which has no float '
                    'weight to train: start from the checkpoint (.pth) that '
                    'the file was exported from')
            return x
        if not self.is_initialized:
            why = f' ({self.misfit.reason})' if self.misfit else ''
            raise RuntimeError(
                f'this quantizer is not initialized{why}: load an LCQ '
                'checkpoint that fits the config, or calibrate (LCQHook does '
                'before training and testing)')
        dtype = x.dtype
        if self.is_weight or self.config.out_bits is not None:
            # More than one step, and rounded to half precision but once.
            x = widened(x)
        if self.has_scale:
            scale = self.scale(x)
            return (scale * self._quantize(x / scale)).to(dtype)
        # std(w) Q(w / std(w); clip) is Q(w; clip std(w)).
        return self._quantize(
            x, normalized=self.weight_norm != 'none').to(dtype)

    def _quantize(self, x: Tensor, normalized: bool = False) -> Tensor:
        clip: Tensor = self.clip
        offset = self.lowest
        if offset is None and self.offset is not None and is_distributed():
            # DDP waits for a gradient of every parameter.
            clip = torch.add(clip, self.offset, alpha=0)
        y = lcq_quantize(x, clip, self.theta, self.bits, self.is_symmetric,
                         offset, normalized)
        if self.config.out_bits is None:
            return y
        return self.requantize(y, self.scale(x) if normalized else None)

    def extra_repr(self) -> str:
        """Show bits, signedness and number of levels."""
        return (f'bits={self.bits}, signed={self.is_signed}, '
                f'num_levels={self.num_levels}, '
                f'initialized={self.is_initialized}' +
                (', packed=True' if self.is_packed else ''))
