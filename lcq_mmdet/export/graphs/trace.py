"""From a detector to a graph in which some layers are single nodes."""
import copy
import io
import warnings
from functools import partial
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

from .heads import has_queries
from .layers import Layer
from .network import DetectorNetwork

#: Domain of the nodes that stand for layers until they are lowered.
DOMAIN = 'lcq'
# The newest one that torch's exporter writes what it should in.
_OPSET = 17
_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError)


def trace(network: DetectorNetwork,
          layers: Mapping[str, Layer] = {}) -> onnx.ModelProto:
    """Write a network as an ONNX graph with any batch and image size.

    Each call of one of ``layers`` is a node ``lcq::Conv`` or ``lcq::Linear``
    with the name of the layer as its attribute ``layer``; nothing of the
    layer itself is in the graph.

    Args:
        network: Network in eval mode; it is not changed.
        layers: Layers of its detector by name, all quantized ones among
            them.

    Raises:
        LCQError: If it has an operator that the exporter, or ONNX, does not
            know; names the layer.
    """
    outputs, inputs = network.outputs, network.example(*network.size)
    network = copy.deepcopy(network).requires_grad_(False)
    _make_opaque(network.detector, layers)
    axes = {name: {0: f'{name}_batch'} for name in network.inputs}
    axes[network.inputs[0]].update({2: 'height', 3: 'width'})
    for name in outputs:
        axes[name] = {0: f'{name}_batch'}
        if not (name.startswith('second_stage') or has_queries(
                network.detector)):
            axes[name].update({2: f'{name}_height', 3: f'{name}_width'})
    try:
        graph = export_module(network, inputs, network.inputs, outputs, axes)
    except _ERRORS as error:
        name, reason = _find_culprit(network, inputs)
        raise LCQError(f'{name}: cannot be exported to ONNX: '
                       f'{reason or _first_line(error)}') from None
    for node in graph.graph.node:
        if node.domain not in ('', DOMAIN):
            raise LCQError(f'{_module_of(node)}: cannot be exported to ONNX, '
                           f'which has no {node.domain}::{node.op_type}; '
                           'write a .safetensors file')
    return graph


def _module_of(node: onnx.NodeProto) -> str:
    """Read the module from a node's name, /neck/convs/convs.0/operator."""
    parts = node.name.split('/')[1:-1]
    return '.'.join(
        part for part, child in zip(parts, [*parts[1:], ''])
        if not child.startswith(f'{part}.'))


def _make_opaque(detector: nn.Module, layers: Mapping[str, Layer]) -> None:
    """Put nodes in the place of layers, wherever they are children."""
    opaque = {
        id(detector.get_submodule(name)):
        (_OpaqueConv if isinstance(layer, nn.Conv2d) else _OpaqueLinear)(
            name, layer)
        for name, layer in layers.items()
    }
    for module in list(detector.modules()):
        for child, layer in list(module._modules.items()):
            if id(layer) in opaque:
                setattr(module, child, opaque[id(layer)])


class _Opaque(nn.Module):
    """A layer as a node of its own."""

    def __init__(self, name: str, layer: Any) -> None:
        super().__init__()
        self.name = name
        self.weight, self.bias = layer.weight, layer.bias


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


def export_module(module: nn.Module, inputs: Tuple[Tensor, ...],
                  input_names: Sequence[str], output_names: Sequence[str],
                  axes: Mapping[str, Mapping[int, str]],
                  fold: bool = False) -> onnx.ModelProto:
    """Write what a module does to example inputs as an ONNX graph.

    Args:
        module: Any module.
        inputs: Inputs that it can take.
        input_names: Names of the inputs.
        output_names: Names of the outputs.
        axes: Names of the dimensions that can be of another size, by name of
            the input or output, and then by axis.
        fold: Whether what follows from constants is one, too.
    """
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
            custom_opsets={} if fold else {DOMAIN: 1},
            do_constant_folding=fold,
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
                export_module(module, args, [], [], {})
            except _ERRORS as error:
                return name, _first_line(error)
    return type(network.detector).__name__, ''


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
