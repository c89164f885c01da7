"""Which layers of a detector a graph writes as operators of its own."""
from typing import Any, Dict, Optional, Sequence, Tuple, Union

from torch import nn

from lcq_mmdet.conversion.patterns import check_patterns, matching
from lcq_mmdet.conversion.selection import weighted_layers
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.layers import (LCQConv2d, LCQLinear,
                                           QuantizedLayer, lcq_layers)
from lcq_mmdet.quantization.mmcv_layers import QUANTIZED
from lcq_mmdet.quantization.pyramid import LevelQuantizers
from lcq_mmdet.quantization.quantizer import LCQQuantizer

Layer = Union[nn.Conv2d, nn.Linear]


def exportable_layers(model: nn.Module) -> Dict[str, Any]:
    """Return the quantized layers by name.

    Raises:
        LCQError: If one is neither a plain convolution nor linear, or pads
            with anything but zeros.
    """
    layers: Dict[str, Any] = {}
    for name, layer in lcq_layers(model):
        if not isinstance(layer, (LCQConv2d, LCQLinear)):
            kind = layer.float_class
            # Those of mmcv's own operators are in no graph in float either.
            remedy = '' if kind.__module__.startswith('mmcv.ops') else (
                'leave it in float with model.exclude, or ')
            raise LCQError(f'{name}: a quantized {kind.__name__} cannot be '
                           f'exported to ONNX; {remedy}write a .safetensors '
                           'file')
        if isinstance(layer.act_quantizer, LevelQuantizers):
            raise LCQError(
                f'{name}: per_level=True cannot be exported to ONNX; write a '
                '.safetensors file')
        if getattr(layer, 'padding_mode', 'zeros') != 'zeros':
            raise LCQError(f'{name}: padding_mode={layer.padding_mode!r} '
                           'cannot be exported to ONNX')
        layers[name] = layer
    return layers


def float_layers(
    model: nn.Module, keep: Sequence[str] = ()
) -> Tuple[Dict[str, Layer], Dict[str, str]]:
    """Find the float layers that can be computed in 8-bit integers.

    Args:
        model: A converted detector.
        keep: Patterns of layers to leave in float.

    Returns:
        The layers by name, and why others are left in float, by name.

    Raises:
        LCQError: If a pattern covers no layer.
    """
    others = {
        name: layer
        for name, layer in weighted_layers(model)
        if not isinstance(layer, QuantizedLayer)
    }
    if keep:
        check_patterns('--keep-float', keep, others)
    layers: Dict[str, Layer] = {}
    left: Dict[str, str] = {}
    for name, layer in others.items():
        pattern = matching(name, keep)
        if pattern:
            left[name] = f'kept by {pattern!r}'
        elif (QUANTIZED.get(type(layer)) not in (LCQConv2d, LCQLinear)
              or not isinstance(layer.weight, nn.Parameter)
              or getattr(layer, 'padding_mode', 'zeros') != 'zeros'):
            left[name] = (f'a {type(layer).__name__} of this kind is not '
                          'computed in integers')
        else:
            layers[name] = layer  # type: ignore[assignment]
    return layers, left


def input_quantizer(layer: Layer) -> Optional[LCQQuantizer]:
    """Return the quantizer of a layer's input; a float layer has none."""
    return layer.act_quantizer if isinstance(layer, QuantizedLayer) else None
