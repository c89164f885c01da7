"""Quantized layers as 8-bit integer arithmetic, for onnxruntime.

The graph has QuantizeLinear and DequantizeLinear around float operators,
which onnxruntime turns into integer ones. Weights are rounded to 8 bits
signed, symmetric, with a step an output channel that takes batch
normalization in; inputs to 8 bits unsigned, where saturation is both ReLU
and the learned clip.

A map that a quantized layer reads, and nothing else does, is on the grid of
that layer's quantizer. Others are *streams* with a grid of their own: maps
that are added, pooled, resized or read by several layers, and outputs.
"""
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from lcq_mmdet.errors import LCQError
from lcq_mmdet.layers import LCQConv2d, LCQLinear

from .builder import (GraphBuilder, attributes, is_layer, layer_name,
                      with_outputs)
from .grid import Grid, bounds, table, weight_step
from .network import DetectorNetwork
from .operators import apply, array, in_order
from .session import Graph
from .trace import Layer

MODES = ('exact', 'relaxed')
_OPSET = 21
_INT32 = 2**31 - 1
_TOLERANCE = 1e-4
_SIDE = 64
# These keep an 8-bit map on its grid.
_SAME_GRID = ('MaxPool', 'Resize')
Ranges = Mapping[str, Tuple[float, float]]


class _Stream(NamedTuple):
    codes: str
    grid: Grid


class _Affine(NamedTuple):
    """What batch normalization does to each channel."""
    scale: np.ndarray
    shift: np.ndarray


class _Call(NamedTuple):
    """A call of a layer, with the names of its input and output.

    ``steps`` are those of weight and bias, shape (out) each.
    """
    layer: str
    input: str
    output: str
    affine: Optional[_Affine]
    steps: Tuple[np.ndarray, np.ndarray]


class IntegerLowering:
    """Write a traced graph in 8-bit arithmetic.

    Args:
        traced: A traced graph.
        layers: The quantized layers by name.
    """

    def __init__(self, traced: onnx.ModelProto,
                 layers: Mapping[str, Layer]) -> None:
        self._traced = traced
        self._layers = layers
        self._constants = {
            value.name: value for value in traced.graph.initializer}
        self._readers: Dict[str, List[onnx.NodeProto]] = {}
        for node in traced.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {value.name for value in traced.graph.output}
        self.streams = self._find_streams()

    def _only_reader(self, name: str) -> Optional[onnx.NodeProto]:
        """Return the node that reads a map, where there is just one."""
        readers = self._readers.get(name, [])
        return readers[0] if (len(readers) == 1
                              and name not in self._outputs) else None

    def _is_conv(self, node: onnx.NodeProto) -> bool:
        return is_layer(node) and isinstance(self._layers[layer_name(node)],
                                             LCQConv2d)

    def _find_streams(self) -> List[str]:
        """Name the maps that get a grid of their own, in order."""
        streams: Dict[str, None] = {}
        integer = set()
        for node in self._traced.graph.node:
            name = node.output[0]
            reader = self._only_reader(name)
            if node.op_type == 'Add' and not is_layer(node):
                made = all(value in integer for value in node.input)
            elif node.op_type in ('BatchNormalization', 'Relu'):
                made = node.input[0] in integer and node.input[
                    0] not in streams
            else:
                made = self._is_conv(node)
            if not made:
                if (node.op_type in _SAME_GRID and node.input[0] in streams):
                    integer.add(name)
                continue
            integer.add(name)
            followed = reader is not None and (
                reader.op_type in ('BatchNormalization', 'Relu')
                or is_layer(reader))
            if not followed:
                streams[name] = None
        return list(streams)

    def lower(self, ranges: Ranges, mode: str) -> onnx.ModelProto:
        """Write the graph.

        Args:
            ranges: Least and largest value of each of ``streams``.
            mode: ``'exact'``: inputs of layers are the levels, rounded to 8
                bits; ``'relaxed'``: they are of 8 bits, clipped as learned.
        """
        self._builder = builder = GraphBuilder()
        builder.constants.update(self._constants)
        self._mode = mode
        self._written: Dict[str, _Stream] = {}
        self._weights: Dict[tuple, Tuple[Tuple[str, str], np.ndarray]] = {}
        # What is written in the place of a map that is rounded later.
        self._pending: Dict[str, str] = {}
        self._calls: List[_Call] = []
        grids = {
            name: Grid.between(torch.tensor(low), torch.tensor(high))
            for name, (low, high) in ranges.items()
        }
        for node in self._traced.graph.node:
            name = node.output[0]
            if self._is_conv(node):
                self._write_conv(node)
            elif is_layer(node):
                self._write_linear(node)
            elif (node.op_type in ('BatchNormalization', 'Relu')
                  and node.input[0] in self._pending):
                self._write_affine_or_relu(node, grids)
            else:
                self._copy(node, rename=name in grids)
            if name in grids:
                self._write_stream(name, grids[name])
            elif (node.op_type in _SAME_GRID
                  and node.input[0] in self._written):
                self._pending[name] = f'{name}/float'
                builder.nodes[-1].output[0] = f'{name}/float'
                self._write_stream(name, self._written[node.input[0]].grid)
        return builder.model(self._traced, _OPSET)

    @torch.no_grad()
    def verify(self, written: onnx.ModelProto, traced: onnx.ModelProto,
               network: DetectorNetwork,
               layers: Mapping[str, Layer]) -> None:
        """Compare what each layer makes of its 8-bit input with torch.

        Raises:
            LCQError: If they differ by more than rounding a weight to 8 bits
                can make; names the layer.
        """
        names = {name for call in self._calls for name in call[1:3]}
        graph = Graph(*with_outputs(written, sorted(names)), fused=False)
        inputs = network.example(_SIDE, 2 * _SIDE)
        found = dict(zip(graph.outputs, graph(*inputs)))
        for name, x, y, affine, steps in self._calls:
            layer = layers[name]
            expected = _forward(layer, found[x], layer.quantized_weight(),
                                layer.bias)
            if affine is not None:
                scale, shift = (_by_channel(layer, part) for part in affine)
                expected = expected * scale + shift
            # Each code is off by half a step at most.
            of_weight, of_bias = (_by_channel(layer, step) for step in steps)
            ones = torch.ones_like(layer.weight)
            room = (_forward(layer, found[x].abs(), ones) * of_weight +
                    of_bias) / 2
            difference = (found[y] - expected).abs()
            if not (difference <= room + _TOLERANCE *
                    expected.abs().max()).all():
                raise LCQError(f'{name}: differs by {difference.max()} '
                               'between onnxruntime and torch')

    def _copy(self, node: onnx.NodeProto, rename: bool) -> None:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        for index, name in enumerate(copied.input):
            copied.input[index] = self._pending.get(name, name)
        if rename:
            self._pending[node.output[0]] = f'{node.output[0]}/float'
            copied.output[0] = f'{node.output[0]}/float'
        self._builder.nodes.append(copied)

    def _write_affine_or_relu(self, node: onnx.NodeProto,
                              grids: Mapping[str, Grid]) -> None:
        source, name = self._pending[node.input[0]], node.output[0]
        if node.op_type == 'Relu' and self._zero_point(name, grids) != 0:
            source = self._builder.op('Relu', source, scope=name)
        self._pending[name] = source

    def _zero_point(self, name: str, grids: Mapping[str, Grid]) -> int:
        """Tell the zero point that a map will be rounded with."""
        if name in grids:
            return grids[name].zero_point
        reader = self._only_reader(name)
        assert reader is not None
        return Grid.of(
            self._layers[layer_name(reader)].act_quantizer).zero_point

    def _grid_constants(self, grid: Grid, scope: str) -> Tuple[str, str]:
        constant = self._builder.constant
        return (constant(f'{scope}.step', np.array(grid.step, np.float32)),
                constant(f'{scope}.zero_point',
                         np.array(grid.zero_point, np.uint8)))

    def _write_stream(self, name: str, grid: Grid) -> None:
        """Round a map to its grid; the map is then what is read back."""
        constants = self._grid_constants(grid, name)
        codes = self._builder.op(
            'QuantizeLinear', self._pending.pop(name), *constants, scope=name)
        self._builder.op('DequantizeLinear', codes, *constants, scope=name,
                         output=name)
        self._written[name] = _Stream(codes, grid)

    def _write_linear(self, node: onnx.NodeProto) -> None:
        """Add a linear layer, whose bias and output are in float."""
        name, output = layer_name(node), node.output[0]
        layer = self._layers[name]
        x, _ = self._write_input(node.input[0], layer, name)
        if (name, None) not in self._weights:
            self._weights[name, None] = self._write_weight(layer, None, name)
        constants, bias = self._weights[name, None]
        # Without one for each column onnxruntime puts a single one in.
        zero = self._builder.constant(f'{name}.weight.zero_point',
                                      np.zeros(len(bias), np.int8))
        weight = self._builder.op(
            'DequantizeLinear', *constants, zero, scope=name, axis=1)
        value = self._builder.constant(f'{name}.bias', bias.astype(np.float32))
        apply(self._builder, layer, x, [weight, value], name, output)
        steps = numpy_helper.to_array(self._builder.constants[constants[1]])
        self._calls.append(
            _Call(name, x, output, None, (steps, np.zeros_like(steps))))

    def _write_conv(self, node: onnx.NodeProto) -> None:
        name, output = layer_name(node), node.output[0]
        layer = self._layers[name]
        x, step = self._write_input(node.input[0], layer, name)
        reader = self._only_reader(output)
        affine = None
        if reader is not None and reader.op_type == 'BatchNormalization':
            affine = self._affine(reader)
        key = (name, affine and reader and reader.name)
        if key not in self._weights:
            scope = f'{name}/{len(self._weights)}'
            self._weights[key] = self._write_weight(layer, affine, scope)
        weight, bias = self._weights[key]
        scope = f'{weight[0]}.bias/{step}'
        wide = numpy_helper.to_array(
            self._builder.constants[weight[1]]).astype(np.float64)
        steps = wide * step
        codes = np.rint(bias / steps).clip(-_INT32, _INT32)
        written = (weight, self._constant_and_step(
            scope, codes.astype(np.int32), steps))
        # onnxruntime turns those into integer ones that read no shared ones.
        parameters = [
            self._builder.op(
                'DequantizeLinear', *constants, scope=name, axis=0)
            for constants in written
        ]
        self._pending[output] = apply(self._builder, layer, x, parameters,
                                      name)
        self._calls.append(
            _Call(name, x, self._pending[output], affine, (wide, steps)))

    def _write_input(self, source: str, layer: Layer,
                     name: str) -> Tuple[str, float]:
        """Add an input's rounding; return its name and step."""
        op, quantizer = self._builder.op, layer.act_quantizer
        scope = f'{name}.act_quantizer'
        target = Grid.of(quantizer)
        constants = self._grid_constants(target, scope)
        stream = self._written.get(source)
        if stream is None:
            stream = _Stream(
                op('QuantizeLinear', self._pending.get(source, source),
                   *constants, scope=scope), target)
        codes, grid = stream
        step = target.step
        if self._mode == 'exact':
            levels = Grid.of(quantizer, quantizer.config.out_bits or 8)
            constants = self._grid_constants(levels, f'{scope}.levels')
            step = levels.step
            looked_up = table(grid, levels, quantizer)
            if (looked_up != np.arange(256)).any() or grid != levels:
                codes = op(
                    'Gather',
                    self._builder.constant(f'{scope}/{source}.table',
                                           looked_up),
                    op('Cast', codes, scope=scope, to=TensorProto.INT32),
                    scope=scope)
        elif grid != target:
            low, high = (
                self._builder.constant(f'{scope}/{source}.{end}', value)
                for end, value in zip(('low', 'high'), bounds(grid, target)))
            codes = op('Clip', codes, low, high, scope=scope)
            constants, step = self._grid_constants(grid, source), grid.step
        return op('DequantizeLinear', codes, *constants, scope=scope), step

    def _affine(self, node: onnx.NodeProto) -> _Affine:
        gamma, beta, mean, variance = (
            numpy_helper.to_array(self._constant(name)).astype(np.float64)
            for name in node.input[1:5])
        scale = gamma / np.sqrt(variance + attributes(node)['epsilon'])
        return _Affine(scale, beta - mean * scale)

    def _constant(self, name: str) -> TensorProto:
        """Look an initializer up through the nodes that only rename it."""
        for node in self._traced.graph.node:
            if node.op_type == 'Identity' and node.output[0] == name:
                return self._constant(node.input[0])
        return self._constants[name]

    def _write_weight(self, layer: Layer, affine: Optional[_Affine],
                      scope: str) -> Tuple[Tuple[str, str], np.ndarray]:
        """Round a weight to 8 bits.

        Returns:
            Names of its codes and steps, and the bias, shape (out).
        """
        bias, factor = np.zeros(len(layer.weight)), np.ones(len(layer.weight))
        if layer.bias is not None:
            bias = array(layer.bias).astype(np.float64)
        if affine is not None:
            factor = affine.scale
            bias = bias * factor + affine.shift
        step = weight_step(layer.weight_quantizer, layer.weight)
        codes = np.rint(array(layer.quantized_weight()) / step)
        # The sum of a bias and products fits into 32 bits.
        least = np.abs(bias) / Grid.of(layer.act_quantizer).step / 2**30
        steps = np.abs(factor) * step.reshape(-1)
        wide = np.maximum(steps, least).clip(1e-20)
        change = (np.sign(factor) * steps / wide).reshape(
            -1, *[1] * (codes.ndim - 1))
        codes = np.rint(codes * change).clip(-127, 127).astype(np.int8)
        return self._constant_and_step(
            f'{scope}.weight', in_order(layer, codes), wide), bias

    def _constant_and_step(self, name: str, codes: np.ndarray,
                           steps: np.ndarray) -> Tuple[str, str]:
        constant = self._builder.constant
        return (constant(name, codes),
                constant(f'{name}.step', steps.astype(np.float32)))


def _forward(layer: Layer, x: Tensor, weight: Tensor,
             bias: Optional[Tensor] = None) -> Tensor:
    if isinstance(layer, LCQLinear):
        return F.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


def _by_channel(layer: Layer, values: np.ndarray) -> Tensor:
    """Give values of output channels the shape that fits an output."""
    return torch.from_numpy(values).float().view(
        -1, *[1] * (layer.weight.dim() - 2))


def measure_ranges(graph: onnx.ModelProto, names: List[str],
                   network: DetectorNetwork,
                   images: Iterable[Tensor]) -> Ranges:
    """Find the least and largest values of maps over some images.

    Args:
        graph: The graph in float arithmetic.
        names: Names of maps in it.
        network: The network, for what inputs it has beside the image.
        images: Batches of preprocessed images, one or more.
    """
    run = Graph(*with_outputs(graph, names))
    ranges = {name: (0., 0.) for name in names}
    for image in images:
        found = dict(
            zip(run.outputs, run(image, *network.example(1, 1)[1:])))
        for name, (low, high) in ranges.items():
            least, largest = found[name].aminmax()
            ranges[name] = (min(low, float(least)), max(high, float(largest)))
    return ranges
