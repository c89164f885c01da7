"""The quantized layers, from float ones and back to them."""
from typing import (Any, Callable, Dict, Iterator, List, Optional, Tuple, Type,
                    TypeVar)

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcq_mmdet.compat import is_compiling
from lcq_mmdet.functional import is_half
from lcq_mmdet.recompute import recomputing

from .config import QuantizerConfig
from .kinds import make_quantizer
from .precision import not_halved
from .pyramid import LevelQuantizers
from .quantizer import LCQQuantizer

_Layer = TypeVar('_Layer', bound=nn.Module)


class QuantizedLayer(nn.Module):
    """What all quantized layers share; mixed into the class of a float one.

    ``weight`` and ``bias`` keep their names, shapes and float values, so a
    float checkpoint loads unchanged. The bias stays in float. In a model that
    is cast to half precision the weight stays in float32.

    Args:
        *args: Arguments of the float layer.
        config: Settings of both quantizers.
        **kwargs: Keyword arguments of the float layer.

    Attributes:
        float_class: Class of the float layer.
    """
    float_class: Type[nn.Module]
    weight: Tensor
    _cached: Optional['_CachedWeight']

    def __init__(self,
                 *args: Any,
                 config: QuantizerConfig = QuantizerConfig(),
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_quantizers(config)

    def _add_quantizers(self,
                        config: QuantizerConfig,
                        num_levels: int = 1) -> None:
        self.act_quantizer: Any = (
            LevelQuantizers(config, num_levels)
            if num_levels > 1 else make_quantizer(config, is_weight=False))
        self.weight_quantizer = make_quantizer(config, is_weight=True)
        self._cached = None

    @classmethod
    def from_float(cls,
                   layer: nn.Module,
                   config: QuantizerConfig,
                   num_levels: int = 1) -> 'QuantizedLayer':
        """Make a quantized layer that shares a float one's parameters.

        Args:
            layer: A layer of :attr:`float_class` or one that computes the
                same, on any device, in any mode.
            config: Settings of both quantizers.
            num_levels: Number of quantizers of the input, one for each of
                the calls in a forward pass of the head.
        """
        quantized = _in_class(layer, cls)
        quantized._add_quantizers(config, num_levels)
        for quantizer in (quantized.act_quantizer,
                          quantized.weight_quantizer):
            quantizer.to(quantized.weight.device)
        return quantized.train(layer.training)

    def to_float(self) -> nn.Module:
        """Make a layer of :attr:`float_class` with the quantized weight.

        The input is not quantized any more: apply ``act_quantizer`` before.
        """
        return self.float_layer_with(
            nn.Parameter(self.quantized_weight().detach()))

    def float_layer_with(self, weight: Tensor) -> nn.Module:
        """Make a layer of :attr:`float_class` with another weight.

        All else is shared.

        Args:
            weight: A parameter, or a tensor with a graph.
        """
        layer = _in_class(self, self.float_class)
        del layer.act_quantizer, layer.weight_quantizer, layer._cached
        layer._parameters['weight'] = weight  # type: ignore[assignment]
        return layer

    def quantizers(self) -> Iterator[Tuple[str, LCQQuantizer]]:
        """Iterate over the quantizers, input first, and their names."""
        for child in ('act_quantizer', 'weight_quantizer'):
            for name, module in getattr(self, child).named_modules(
                    prefix=child):
                if isinstance(module, LCQQuantizer):
                    yield name, module

    def quantized_weight(self) -> Tensor:
        """Quantize the weight, any shape.

        In eval mode without gradients the result is cached until the weight
        or its quantizer changes, or :meth:`train` or :meth:`eval` is called.
        That call is needed after a change in place through ``.data``, which
        torch does not count; as runners do before they evaluate.
        """
        quantizer = self.weight_quantizer
        if (self.training or torch.is_grad_enabled() or is_compiling()
                or torch.jit.is_tracing()
                # Its changes are not counted either.
                or self.weight.is_inference()):
            return quantizer(self.weight)
        if self._cached is None or not self._cached.is_valid(self):
            self._cached = _CachedWeight(self)
        return self._cached.value

    def train(self, mode: bool = True) -> 'QuantizedLayer':
        """Set the mode, and clear the cache of the quantized weight."""
        self._cached = None
        return super().train(mode)

    def _quantized(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Quantize an input and the weight.

        Returns:
            Both in the type of the input where that is half precision.
        """
        x, weight = self.act_quantizer(x), self.quantized_weight()
        return x, weight.to(x.dtype) if is_half(x) else weight

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        # What is quantized stays in float32: rounded to half precision, a
        # weight near a threshold would take another level.
        def cast(value: Tensor) -> Tensor:
            if value is self.weight or value is self.weight.grad:
                return not_halved(fn, value)
            return fn(value)

        return super()._apply(cast, *args, **kwargs)

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, '_cached': None}

    def _load_from_state_dict(self, state_dict: Any, prefix: str,
                              *args: Any) -> None:
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
                f'the {name} of a quantized layer cannot be replaced: its '
                'quantizer was learned for it. Fusing batch normalization '
                '(--fuse-conv-bn, fuse_conv_bn) is not supported; change '
                'values in place')
        super().__setattr__(name, value)


class _CachedWeight:
    """The quantized weight of a layer, and what it was computed from."""

    def __init__(self, layer: QuantizedLayer) -> None:
        # Held, so that no other tensor takes the memory of one of them.
        self._tensors = [tensor.detach() for tensor in self._inputs(layer)]
        self._versions = [tensor._version for tensor in self._tensors]
        self._bypass = layer.weight_quantizer.bypass
        self.value = layer.weight_quantizer(layer.weight)

    def is_valid(self, layer: QuantizedLayer) -> bool:
        """Tell whether the layer would compute the same again."""
        inputs = self._inputs(layer)
        return (self._bypass == layer.weight_quantizer.bypass
                and self._versions == [tensor._version for tensor in inputs]
                and all(held.data_ptr() == tensor.data_ptr()
                        for held, tensor in zip(self._tensors, inputs)))

    @staticmethod
    def _inputs(layer: QuantizedLayer) -> List[Tensor]:
        quantizer = layer.weight_quantizer
        return [layer.weight, *quantizer.parameters(), *quantizer.buffers()]


class LCQConv2d(QuantizedLayer, nn.Conv2d):
    """Convolve a quantized input with a quantized weight."""
    float_class = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, shape (batch, in, height, width)."""
        x, weight = self._quantized(x)
        with recomputing(x, weight):
            return self._conv_forward(x, weight, self.bias)


class LCQLinear(QuantizedLayer, nn.Linear):
    """Multiply a quantized input by a quantized weight."""
    float_class = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``, shape (..., in), to shape (..., out)."""
        x, weight = self._quantized(x)
        with recomputing(x, weight):
            return F.linear(x, weight, self.bias)


def lcq_layers(model: nn.Module) -> Iterator[Tuple[str, QuantizedLayer]]:
    """Iterate over the quantized layers and their qualified names."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            yield name, module


def lcq_quantizers(
        model: nn.Module) -> Iterator[Tuple[str, LCQQuantizer]]:
    """Iterate over all quantizers of a model and their qualified names."""
    for name, module in model.named_modules():
        if isinstance(module, LCQQuantizer):
            yield name, module


def _in_class(layer: nn.Module, cls: Type[_Layer]) -> _Layer:
    """Copy a layer into another class; parameters and children are shared."""
    copied = cls.__new__(cls)
    copied.__dict__.update({
        key: value.copy() if isinstance(value, (dict, set)) else value
        for key, value in layer.__dict__.items()
    })
    return copied
