"""From a detector to a graph in which quantized layers are single nodes."""
import copy
import io
import warnings
from functools import partial
from typing import Any, Dict, List, Tuple, Union

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.layers import LCQConv2d, LCQLinear, lcq_layers
from lcq_mmdet.quantization.pyramid import LevelQuantizers

from .network import DetectorNetwork

Layer = Union[LCQConv2d, LCQLinear]
#: Domain of the nodes that stand for quantized layers until they are lowered.
DOMAIN = 'lcq'
# The newest one that torch's exporter writes what it should in.
_OPSET = 17
_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError)


def exportable_layers(model: nn.Module) -> Dict[str, Layer]:
    """Return the quantized layers by name.

    Raises:
        LCQError: If one is neither a plain convolution nor linear.
    """
    layers: Dict[str, Layer] = {}
    for name, layer in lcq_layers(model):
        if not isinstance(layer, (LCQConv2d, LCQLinear)):
            raise LCQError(
                f'{name}: a quantized {layer.float_class.__name__} cannot be '
                'exported to ONNX; leave it in float with model.exclude, or '
                'write a .safetensors file')
        if isinstance(layer.act_quantizer, LevelQuantizers):
            raise LCQError(
                f'{name}: per_level=True cannot be exported to ONNX; write a '
                '.safetensors file')
        layers[name] = layer
    return layers


def trace(network: DetectorNetwork) -> onnx.ModelProto:
    """Write a network as an ONNX graph with any batch and image size.

    Each call of a quantized layer is a node ``lcq::Conv`` or ``lcq::Linear``
    with the name of the layer as its attribute ``layer``; nothing of the
    layer itself is in the graph.

    Args:
        network: Network in eval mode; it is not changed.

    Raises:
        LCQError: If it has an operator that the exporter does not know;
            names the layer.
    """
    outputs, inputs = network.outputs, network.example(*network.size)
    network = copy.deepcopy(network).requires_grad_(False)
    detector = network.detector
    for name, layer in exportable_layers(detector).items():
        if getattr(layer, 'padding_mode', 'zeros') != 'zeros':
            raise LCQError(f'{name}: padding_mode={layer.padding_mode!r} '
                           'cannot be exported to ONNX')
        parent, _, child = name.rpartition('.')
        opaque = _OpaqueConv if isinstance(layer, LCQConv2d) else _OpaqueLinear
        setattr(detector.get_submodule(parent), child, opaque(name, layer))
    axes = {name: {0: f'{name}_batch'} for name in network.inputs}
    axes[network.inputs[0]].update({2: 'height', 3: 'width'})
    for name in outputs:
        axes[name] = {0: f'{name}_batch'}
        if not name.startswith('second_stage'):
            axes[name].update({2: f'{name}_height', 3: f'{name}_width'})
    try:
        return _export(network, inputs, network.inputs, outputs, axes)
    except _ERRORS as error:
        name, reason = _find_culprit(network, inputs)
        raise LCQError(f'{name}: cannot be exported to ONNX: '
                       f'{reason or _first_line(error)}') from None


class _Opaque(nn.Module):
    """A quantized layer as a node of its own."""

    def __init__(self, name: str, layer: Any) -> None:
        super().__init__()
        self.name = name
        self.weight = layer.weight


class _OpaqueLinear(_Opaque):

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.lcq_mmdet.linear(x, self.weight, self.name)


class _OpaqueConv(_Opaque):

    def __init__(self, name: str, layer: Any) -> None:
        super().__init__(name, layer)
        self.pads = list(layer._reversed_padding_repeated_twice)
        self.rest = list(layer.stride), list(layer.dilation), layer.groups

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.lcq_mmdet.conv(x, self.weight, self.name, self.pads,
                                        *self.rest)


def _conv(x: Tensor, weight: Tensor, name: str, pads: List[int],
          stride: List[int], dilation: List[int], groups: int) -> Tensor:
    """Make an output of the right shape, which is all that matters."""
    return F.conv2d(
        F.pad(x, pads), weight, None, stride, 0, dilation, groups)


def _linear(x: Tensor, weight: Tensor, name: str) -> Tensor:
    return F.linear(x, weight)


def _write_layer(op_type: str, g: Any, x: Any, weight: Any, name: Any,
                 *rest: Any) -> Any:
    y = g.op(f'{DOMAIN}::{op_type}', x, layer_s=name.node().s('value'))
    return y.setType(x.type().with_sizes([None] * x.type().dim()))


_LIBRARY = torch.library.Library('lcq_mmdet', 'FRAGMENT')
_LIBRARY.define('conv(Tensor x, Tensor weight, str name, int[] pads, '
                'int[] stride, int[] dilation, int groups) -> Tensor')
_LIBRARY.define('linear(Tensor x, Tensor weight, str name) -> Tensor')
for _name, _function in (('conv', _conv), ('linear', _linear)):
    _LIBRARY.impl(_name, _function, 'CompositeExplicitAutograd')
    torch.onnx.register_custom_op_symbolic(
        f'lcq_mmdet::{_name}', partial(_write_layer, _name.capitalize()),
        _OPSET)


def _export(module: nn.Module, inputs: Tuple[Tensor, ...],
            input_names: List[str], output_names: List[str],
            axes: Dict[str, Dict[int, str]]) -> onnx.ModelProto:
    stream: Any = io.BytesIO()
    with warnings.catch_warnings():
        # Of a deprecated exporter, and of sizes that are constants by design.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            module,
            inputs,
            stream,
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=axes,
            opset_version=_OPSET,
            custom_opsets={DOMAIN: 1},
            do_constant_folding=False,
            **_TORCHSCRIPT)
    return onnx.load_from_string(stream.getvalue())


# torch 2.5 and later have a second exporter, which is the default later on.
_TORCHSCRIPT: Dict[str, Any] = (
    dict(dynamo=False) if 'dynamo' in torch.onnx.export.__code__.co_varnames
    else {})


def _find_culprit(network: DetectorNetwork,
                  inputs: Tuple[Tensor, ...]) -> Tuple[str, str]:
    """Name the first, innermost module that cannot be exported alone."""
    seen: Dict[str, Tuple[nn.Module, Tuple[Any, ...]]] = {}

    def remember(name: str, module: nn.Module, args: Any, output: Any) -> None:
        seen.setdefault(name, (module, args))

    handles = [
        module.register_forward_hook(partial(remember, name))
        for name, module in network.detector.named_modules()
        if name and not isinstance(module, _Opaque)
    ]
    with torch.no_grad():
        network(*inputs)
    for handle in handles:
        handle.remove()
    # Forward hooks run when a module ends: the innermost comes first.
    for name, (module, args) in seen.items():
        if args and all(isinstance(value, Tensor) for value in args):
            try:
                _export(module, args, [], [], {})
            except _ERRORS as error:
                return name, _first_line(error)
    return type(network.detector).__name__, ''


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
