"""Layers as 8-bit integer arithmetic.

The graph has QuantizeLinear and DequantizeLinear around float operators,
which engines turn into integer ones. Weights are rounded to 8 bits
signed, symmetric, with a step an output channel that takes batch
normalization in; inputs to 8 bits unsigned, where saturation is both ReLU
and the learned clip. Layers that training left in float have a step for each
output channel of the weight, and no clip.

A map that a quantized layer reads, and nothing else does, is on the grid of
that layer's quantizer. Others are *streams* with a grid of their own: maps
that are added, pooled, resized, or read by several layers or by one without
a quantizer, and outputs.
"""
from math import gcd
from typing import Dict, List, Mapping, Tuple

import numpy as np
import onnx
import torch

from ..engines import ENGINES
from .builder import GraphBuilder, is_layer, layer_name
from .folding import WeightWriter, read_affine
from .grid import Grid, bounds, table
from .layers import Layer, input_quantizer
from .operators import apply, look_up
from .plan import Call, IntegerGraph, Stream
from .ranges import Ranges
from .streams import SAME_GRID, Maps

_OPSET = 21
_INT32 = 2**31 - 1
_MOST_ROWS = 16


class IntegerLowering:
    """Write a traced graph in 8-bit arithmetic.

    Args:
        traced: A traced graph.
        layers: The layers of its nodes by name.

    Attributes:
        measured: Names of the maps whose ranges must be known.
    """

    def __init__(self, traced: onnx.ModelProto,
                 layers: Mapping[str, Layer]) -> None:
        self._traced = traced
        self._layers = layers
        self._constants = {
            value.name: value for value in traced.graph.initializer}
        self._maps = Maps(traced, layers)
        self.measured = self._maps.streams + self._maps.inputs

    def lower(self, ranges: Ranges, mode: str,
              engine: str = ENGINES[0]) -> IntegerGraph:
        """Write the graph.

        Args:
            ranges: Least and largest value of each of ``measured``.
            mode: ``'exact'``: inputs of layers are the levels, rounded to 8
                bits; ``'relaxed'``: they are of 8 bits, clipped as learned.
            engine: Engine that tables are looked up fast in.
        """
        self._builder = builder = GraphBuilder()
        builder.constants.update(self._constants)
        self._mode, self._engine = mode, engine
        self._written: Dict[str, Stream] = {}
        self._rounded: Dict[str, Stream] = {}
        self._weights = WeightWriter(builder, self._traced)
        # What is written in the place of a map that is rounded later.
        self._pending: Dict[str, str] = {}
        self._calls: List[Call] = []
        self._grids = {
            name: Grid.between(torch.tensor(low), torch.tensor(high))
            for name, (low, high) in ranges.items()
        }
        streams = set(self._maps.streams)
        for node in self._traced.graph.node:
            name = node.output[0]
            if self._maps.is_conv(node):
                self._write_conv(node)
            elif is_layer(node):
                self._write_linear(node)
            elif (node.op_type in ('BatchNormalization', 'Relu')
                  and node.input[0] in self._pending):
                self._write_affine_or_relu(node)
            else:
                self._copy(node, rename=name in streams)
            if name in streams:
                self._write_stream(name, self._grids[name])
            elif (node.op_type in SAME_GRID
                  and node.input[0] in self._written):
                self._pending[name] = f'{name}/float'
                builder.nodes[-1].output[0] = f'{name}/float'
                self._write_stream(name, self._written[node.input[0]].grid)
        return IntegerGraph(
            builder.model(self._traced, _OPSET), mode, self._calls,
            self._written)

    def _copy(self, node: onnx.NodeProto, rename: bool) -> None:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        for index, name in enumerate(copied.input):
            copied.input[index] = self._pending.get(name, name)
        if rename:
            self._pending[node.output[0]] = f'{node.output[0]}/float'
            copied.output[0] = f'{node.output[0]}/float'
        self._builder.nodes.append(copied)

    def _write_affine_or_relu(self, node: onnx.NodeProto) -> None:
        source, name = self._pending[node.input[0]], node.output[0]
        if node.op_type == 'Relu' and self._zero_point(name) != 0:
            source = self._builder.op('Relu', source, scope=name)
        self._pending[name] = source

    def _zero_point(self, name: str) -> int:
        """Tell the zero point that a map will be rounded with."""
        if name in self._grids:
            return self._grids[name].zero_point
        reader = self._maps.only_reader(name)
        assert reader is not None
        quantizer = input_quantizer(self._layers[layer_name(reader)])
        assert quantizer is not None
        return Grid.of(quantizer).zero_point

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
        self._written[name] = Stream(codes, grid)

    def _write_linear(self, node: onnx.NodeProto) -> None:
        """Add a linear layer, whose bias and output are in float."""
        name, output = layer_name(node), node.output[0]
        layer = self._layers[name]
        x, step = self._write_input(node.input[0], layer, name)
        constants, weight = self._weights.write(name, layer, step)
        # Without one for each column onnxruntime puts a single one in.
        zero = self._builder.constant(f'{name}.weight.zero_point',
                                      np.zeros(len(weight.bias), np.int8))
        parameters = [
            self._builder.op(
                'DequantizeLinear', *constants, zero, scope=name, axis=1),
            self._builder.constant(f'{name}.bias',
                                   weight.bias.astype(np.float32))
        ]
        apply(self._builder, layer, x, parameters, name, output)
        self._calls.append(
            Call(name, node.input[0], output, x, output, constants, None,
                 None))

    def _write_conv(self, node: onnx.NodeProto) -> None:
        name, output = layer_name(node), node.output[0]
        layer = self._layers[name]
        x, step = self._write_input(node.input[0], layer, name)
        reader = self._maps.only_reader(output)
        if reader is None or reader.op_type != 'BatchNormalization':
            reader = None
        constants, weight = self._weights.write(name, layer, step, reader)
        steps = weight.steps * step
        codes = np.rint(weight.bias / steps).clip(-_INT32, _INT32)
        written = (constants,
                   self._weights.with_steps(f'{constants[0]}.bias/{step}',
                                            codes.astype(np.int32), steps))
        # onnxruntime turns those into integer ones that read no shared ones.
        parameters = [
            self._builder.op(
                'DequantizeLinear', *constants, scope=name, axis=0)
            for constants in written
        ]
        self._pending[output] = apply(self._builder, layer, x, parameters,
                                      name)
        made = output if reader is None else reader.output[0]
        self._calls.append(
            Call(name, node.input[0], made, x, self._pending[output],
                 *written, reader and read_affine(self._traced, reader)))

    def _write_input(self, source: str, layer: Layer,
                     name: str) -> Tuple[str, float]:
        """Add an input's rounding; return its name and step."""
        op, quantizer = self._builder.op, input_quantizer(layer)
        stream = self._written.get(source)
        if quantizer is None:
            stream = stream or self._round_input(source)
            return op(
                'DequantizeLinear',
                stream.codes,
                *self._grid_constants(stream.grid, source),
                scope=name), stream.grid.step
        scope = f'{name}.act_quantizer'
        target = Grid.of(quantizer)
        constants = self._grid_constants(target, scope)
        if stream is None:
            stream = Stream(
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
                rows = None if self._engine == 'openvino' else gcd(
                    layer.weight.shape[1], _MOST_ROWS)
                codes = look_up(self._builder, codes, looked_up,
                                f'{scope}/{source}.table', scope, rows)
        elif grid != target:
            low, high = (
                self._builder.constant(f'{scope}/{source}.{end}', value)
                for end, value in zip(('low', 'high'), bounds(grid, target)))
            codes = op('Clip', codes, low, high, scope=scope)
            constants, step = self._grid_constants(grid, source), grid.step
        return op('DequantizeLinear', codes, *constants, scope=scope), step

    def _round_input(self, source: str) -> Stream:
        """Round a map for all layers without a quantizer that read it."""
        if source not in self._rounded:
            grid = self._grids[source]
            codes = self._builder.op(
                'QuantizeLinear', self._pending.get(source, source),
                *self._grid_constants(grid, source), scope=source)
            self._rounded[source] = Stream(codes, grid)
        return self._rounded[source]
