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
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import onnx
import torch
from onnx import TensorProto

from .builder import GraphBuilder, is_layer, layer_name
from .checking import Call
from .folding import RoundedWeight, read_affine, round_weight
from .grid import Grid, bounds, table
from .operators import apply
from .streams import SAME_GRID, Maps, Ranges
from .trace import Layer

MODES = ('exact', 'relaxed')
_OPSET = 21
_INT32 = 2**31 - 1


_Weight = Tuple[Tuple[str, str], RoundedWeight]


class _Stream(NamedTuple):
    codes: str
    grid: Grid


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
        self._maps = Maps(traced, layers)
        self.streams = self._maps.streams

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
        self._weights: Dict[tuple, _Weight] = {}
        # What is written in the place of a map that is rounded later.
        self._pending: Dict[str, str] = {}
        self.calls: List[Call] = []
        grids = {
            name: Grid.between(torch.tensor(low), torch.tensor(high))
            for name, (low, high) in ranges.items()
        }
        for node in self._traced.graph.node:
            name = node.output[0]
            if self._maps.is_conv(node):
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
            elif (node.op_type in SAME_GRID
                  and node.input[0] in self._written):
                self._pending[name] = f'{name}/float'
                builder.nodes[-1].output[0] = f'{name}/float'
                self._write_stream(name, self._written[node.input[0]].grid)
        return builder.model(self._traced, _OPSET)

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
        reader = self._maps.only_reader(name)
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
        constants, weight = self._round_weight(name)
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
        steps = weight.steps, np.zeros_like(weight.steps)
        self.calls.append(Call(name, x, output, None, steps))

    def _write_conv(self, node: onnx.NodeProto) -> None:
        name, output = layer_name(node), node.output[0]
        layer = self._layers[name]
        x, step = self._write_input(node.input[0], layer, name)
        reader = self._maps.only_reader(output)
        if reader is None or reader.op_type != 'BatchNormalization':
            reader = None
        constants, weight = self._round_weight(name, reader)
        steps = weight.steps * step
        codes = np.rint(weight.bias / steps).clip(-_INT32, _INT32)
        written = (constants,
                   self._constant_and_step(f'{constants[0]}.bias/{step}',
                                           codes.astype(np.int32), steps))
        # onnxruntime turns those into integer ones that read no shared ones.
        parameters = [
            self._builder.op(
                'DequantizeLinear', *constants, scope=name, axis=0)
            for constants in written
        ]
        self._pending[output] = apply(self._builder, layer, x, parameters,
                                      name)
        self.calls.append(
            Call(name, x, self._pending[output], weight.affine,
                 (weight.steps, steps)))

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

    def _round_weight(
            self,
            name: str,
            batch_norm: Optional[onnx.NodeProto] = None) -> '_Weight':
        """Round a layer's weight once for each node that is folded into it."""
        key = (name, batch_norm and batch_norm.name)
        if key not in self._weights:
            weight = round_weight(
                self._layers[name],
                batch_norm and read_affine(self._traced, batch_norm))
            self._weights[key] = self._constant_and_step(
                f'{name}/{len(self._weights)}.weight', weight.codes,
                weight.steps), weight
        return self._weights[key]

    def _constant_and_step(self, name: str, codes: np.ndarray,
                           steps: np.ndarray) -> Tuple[str, str]:
        constant = self._builder.constant
        return (constant(name, codes),
                constant(f'{name}.step', steps.astype(np.float32)))
