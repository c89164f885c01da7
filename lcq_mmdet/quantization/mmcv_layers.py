"""Quantized layers of mmcv's kinds, and which layer becomes which."""
from typing import Any, Dict, Type

import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from mmcv.cnn.bricks import Conv2dAdaptivePadding, wrappers
from mmcv.ops import (DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d,
                      ModulatedDeformConv2dPack, deform_conv2d,
                      modulated_deform_conv2d)
from torch import Tensor, nn

from lcq_mmdet.recompute import recomputing

from .layers import LCQConv2d, LCQLinear, QuantizedLayer


class _OwnForward(QuantizedLayer):
    """Run the float layer's own forward on quantized input and weight."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Compute what the float layer does; only ``x`` is quantized."""
        x, weight = self._quantized(x)
        layer = self.float_layer_with(weight)
        with recomputing(x):
            return layer.forward(x, *args)


class LCQConv2dAdaptivePadding(_OwnForward, Conv2dAdaptivePadding):
    """Quantize before the padding, which stays exactly zero."""
    float_class = Conv2dAdaptivePadding


class LCQConvWS2d(_OwnForward, ConvWS2d):
    """Quantize before the standardization of the weight.

    What is stored has few levels; what is convolved has as many, each output
    channel its own.
    """
    float_class = ConvWS2d


class LCQConvAWS2d(_OwnForward, ConvAWS2d):
    """Quantize before the standardization, as :class:`LCQConvWS2d`."""
    float_class = ConvAWS2d


class LCQConvTranspose2d(_OwnForward, nn.ConvTranspose2d):
    """Quantize input and weight of a transposed convolution."""
    float_class = nn.ConvTranspose2d


class LCQDeformConv2d(_OwnForward, DeformConv2d):
    """Quantize input and weight; where to sample stays in float."""
    float_class = DeformConv2d


class LCQModulatedDeformConv2d(_OwnForward, ModulatedDeformConv2d):
    """Quantize input and weight; where and how to sample stay in float."""
    float_class = ModulatedDeformConv2d


class LCQDeformConv2dPack(QuantizedLayer, DeformConv2dPack):
    """Quantize input and weight; ``conv_offset`` gets the input as it is."""
    float_class = DeformConv2dPack
    conv_offset: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, shape (batch, in, height, width)."""
        offset = self.conv_offset(x)
        x, weight = self._quantized(x)
        with recomputing(x):
            return deform_conv2d(x, offset, weight, self.stride, self.padding,
                                 self.dilation, self.groups,
                                 self.deform_groups, False, self.im2col_step)


class LCQModulatedDeformConv2dPack(QuantizedLayer, ModulatedDeformConv2dPack):
    """Quantize input and weight; ``conv_offset`` gets the input as it is."""
    float_class = ModulatedDeformConv2dPack
    conv_offset: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, shape (batch, in, height, width)."""
        rows, columns, mask = self.conv_offset(x).chunk(3, dim=1)
        offset = torch.cat([rows, columns], dim=1)
        mask = mask.sigmoid()
        x, weight = self._quantized(x)
        with recomputing(x):
            return modulated_deform_conv2d(
                x, offset, mask, weight, self.bias, self.stride, self.padding,
                self.dilation, self.groups, self.deform_groups)


#: What a float layer of exactly this class becomes.
QUANTIZED: Dict[Type[nn.Module], Type[QuantizedLayer]] = {
    nn.Conv2d: LCQConv2d,
    wrappers.Conv2d: LCQConv2d,
    nn.Linear: LCQLinear,
    wrappers.Linear: LCQLinear,
    wrappers.ConvTranspose2d: LCQConvTranspose2d,
    **{
        layer.float_class: layer
        for layer in (LCQConv2dAdaptivePadding, LCQConvWS2d, LCQConvAWS2d,
                      LCQConvTranspose2d, LCQDeformConv2d,
                      LCQModulatedDeformConv2d, LCQDeformConv2dPack,
                      LCQModulatedDeformConv2dPack)
    }
}
