"""The quantized convolution, from a float one and back to it."""
from typing import Any, Dict, Iterator, Tuple

import torch
from torch import Tensor, nn

from lcq_mmdet.config import QuantizerConfig
from lcq_mmdet.kept import KeptWeight
from lcq_mmdet.quantizer import LCQQuantizer


class LCQConv2d(nn.Conv2d):
    """Convolve a quantized input with a quantized weight.

    ``weight`` and ``bias`` keep their names, shapes and float values, so a
    float checkpoint loads unchanged. The bias stays in float.

    Args:
        *args: Arguments of :class:`torch.nn.Conv2d`.
        config: Settings of both quantizers.
        **kwargs: Keyword arguments of :class:`torch.nn.Conv2d`.
    """

    def __init__(self,
                 *args,
                 config: QuantizerConfig = QuantizerConfig(),
                 **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.act_quantizer = LCQQuantizer(config, is_weight=False)
        self.weight_quantizer = LCQQuantizer(config, is_weight=True)
        self._kept = KeptWeight()

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d,
                    config: QuantizerConfig) -> 'LCQConv2d':
        """Make a quantized convolution that shares a float one's parameters.

        Args:
            conv: A plain convolution, on any device, in any mode.
            config: Settings of both quantizers.
        """
        layer = cls(**_arguments(conv), config=config)
        for name, parameter in conv.named_parameters():
            layer.register_parameter(name, parameter)
        for quantizer in (layer.act_quantizer, layer.weight_quantizer):
            quantizer.to(conv.weight.device)
        return layer.train(conv.training)

    def to_conv2d(self) -> nn.Conv2d:
        """Make a plain convolution with the quantized weight.

        The input is not quantized any more: apply ``act_quantizer`` before.
        """
        conv = nn.Conv2d(**_arguments(self))
        conv.weight = nn.Parameter(self.quantized_weight().detach())
        conv.bias = self.bias
        return conv.train(self.training)

    def quantized_weight(self) -> Tensor:
        """Quantize the weight, shape (out, in / groups, height, width).

        Calls share the result until a backward pass reaches it, a parameter
        changes in place or :meth:`train` is called, in either direction.
        """
        return self._kept.get(self.weight_quantizer, self.weight,
                              self.training)

    def train(self, mode: bool = True) -> 'LCQConv2d':
        """Set the mode, and forget the quantized weight."""
        self._kept.forget()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, shape (batch, in, height, width)."""
        return self._conv_forward(
            self.act_quantizer(x), self.quantized_weight(), self.bias)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # A checkpoint that says nothing of packing has the weight in float.
        if f'{prefix}weight' in state_dict:
            state_dict.setdefault(f'{prefix}weight_quantizer.packed',
                                  torch.tensor(False))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setattr__(self, name: str, value: Any) -> None:
        replaces = name in ('weight', 'bias') and name in self.__dict__.get(
            '_parameters', {}) and getattr(self, name) is not value
        if replaces and hasattr(self, 'weight_quantizer'):
            raise RuntimeError(
                f'the {name} of an LCQ convolution cannot be replaced: its '
                'quantizer was learned for it. Fusing batch normalization '
                '(--fuse-conv-bn, fuse_conv_bn) is not supported; change '
                'values in place')
        super().__setattr__(name, value)


def lcq_layers(model: nn.Module) -> Iterator[Tuple[str, LCQConv2d]]:
    """Iterate over the quantized layers and their qualified names."""
    for name, module in model.named_modules():
        if isinstance(module, LCQConv2d):
            yield name, module


def _arguments(conv: nn.Conv2d) -> Dict[str, Any]:
    return dict(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device='meta')
