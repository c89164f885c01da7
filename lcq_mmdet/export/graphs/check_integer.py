"""Whether a graph in 8-bit arithmetic computes what it should.

Each step is checked on the values that the graph itself has before it, from
the image to the outputs, so that no error passes on into the next step, where
it may become another level, and none is hidden by another. A step may differ
by what sums of floats do, and where that decides which way a value is
rounded, it may be rounded either way.
"""
from typing import Mapping, Optional, Sequence, Set, Tuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.layers import QuantizedLayer

from .builder import is_layer, with_outputs
from .check_float import TOLERANCE
from .folding import fold
from .grid import Grid
from .layers import Layer, input_quantizer
from .operators import array, in_order
from .plan import Call, IntegerGraph
from .ranges import Ranges
from .session import Graph

# Of a whole weight, relative, as 8 bits over four standard deviations give
# 0.01.
_WEIGHT_ERROR = 0.05
_Values = Mapping[str, Tensor]


@torch.no_grad()
def check_integers(graph: IntegerGraph, written: onnx.ModelProto,
                   traced: onnx.ModelProto, layers: Mapping[str, Layer],
                   ranges: Ranges, inputs: Sequence[Tensor]) -> None:
    """Compare a graph in 8-bit arithmetic with the layers, step by step.

    Args:
        graph: What was written.
        written: The graph as it was read again.
        traced: The graph that it was made from.
        layers: The layers of its nodes by name.
        ranges: Ranges that were measured, by name of the map.
        inputs: Inputs of the network to check it with.

    Raises:
        LCQError: If a step differs by more than rounding does; names the
            layer or the map.
    """
    outputs = [value.name for value in traced.graph.output]
    wanted = {*outputs, *(stream.codes for stream in graph.streams.values())}
    for call in graph.calls:
        wanted.update((call.input, call.output))
    run = Graph(*with_outputs(written, sorted(wanted)), fused=False)
    found = dict(zip(run.inputs + run.outputs, (*inputs, *run(*inputs))))
    constants = {
        value.name: numpy_helper.to_array(value)
        for value in written.graph.initializer
    }
    maps = _Maps(graph, traced, found)
    for call in graph.calls:
        layer = layers[call.layer]
        weight, bias = _check_weight(call, layer, constants)
        expected = _forward(layer, found[call.input], weight, bias)
        _check_between(call.layer, found[call.output], expected, expected)
        _check_input(call, layer, maps, graph, ranges)
    for name, (_, grid) in graph.streams.items():
        _check_grid(name, grid, ranges)
        _check_between(
            name,
            maps.read(name)[0],
            *(grid.round(end) for end in _around(maps.before(name))))
    for name in outputs:
        value, _ = maps.read(name)
        _check_between(name, found[name], value, value)


class _Maps:
    """What maps of the traced graph are, given what the 8-bit graph has.

    Its layers and the maps on grids have their values from the 8-bit graph;
    all between is computed as it was traced.

    Attributes:
        found: Values of the 8-bit graph by name.
    """

    def __init__(self, graph: IntegerGraph, traced: onnx.ModelProto,
                 found: _Values) -> None:
        self.found = found
        self._made = {call.made: found[call.output] for call in graph.calls}
        self._on_grid = {
            name: (found[codes].float() - grid.zero_point) * grid.step
            for name, (codes, grid) in graph.streams.items()
        }
        given = {**self._made, **self._on_grid}
        names = [value.name for value in traced.graph.input]
        outputs = [value.name for value in traced.graph.output]
        wanted = {
            f'{name}/before' if name in given else name
            for name in (*graph.streams, *outputs,
                         *(call.source for call in graph.calls))
            if name not in self._made
        }
        model = _cut(traced, given, set(self._made))
        run = Graph(model, [*names, *given], sorted(wanted - {*names, *given}))
        values = run(*(found[name] for name in names), *given.values())
        self._computed = dict(
            zip(run.inputs[:len(names)] + run.outputs,
                (*(found[name] for name in names), *values)))

    def before(self, name: str) -> Tensor:
        """Return what a map is before it is rounded to its own grid."""
        if name in self._made:
            return self._made[name]
        return self._computed[f'{name}/before' if name in self._on_grid else
                              name]

    def read(self, name: str) -> Tuple[Tensor, bool]:
        """Return what readers of a map get, and whether it is on a grid."""
        if name in self._on_grid:
            return self._on_grid[name], True
        return self.before(name), False


def _cut(traced: onnx.ModelProto, given: _Values,
         made: Set[str]) -> onnx.ModelProto:
    """Make values of a traced graph its inputs; what made them is left out.

    What still is computed of them comes under their name and ``/before``.
    """
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    graph = model.graph
    del graph.node[:], graph.output[:], graph.value_info[:]
    for node in traced.graph.node:
        if is_layer(node) or node.output[0] in made:
            continue
        graph.node.add().CopyFrom(node)
        for index, name in enumerate(node.output):
            if name in given:
                name = graph.node[-1].output[index] = f'{name}/before'
            graph.output.append(helper.make_empty_tensor_value_info(name))
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT,
                                      [None] * value.dim())
        for name, value in given.items())
    return model


def _check_weight(
        call: Call, layer: Layer,
        constants: Mapping[str, np.ndarray]) -> Tuple[Tensor, Tensor]:
    """Compare weight and bias in integers with the layer's, and return them.

    Returns:
        Weight as the layer's forward takes it, and bias, with what is folded
        in.
    """
    codes, steps = (constants[name] for name in call.weight)
    factor, bias = fold(layer, call.affine)
    shape = (-1, *[1] * (layer.weight.dim() - 1))
    exact = array(layer.quantized_weight() if isinstance(
        layer, QuantizedLayer) else layer.weight)
    exact = exact * factor.reshape(shape)
    weight = in_order(layer, codes).astype(np.float64) * steps.reshape(shape)
    error = np.abs(weight - exact)
    if ((error > 0.501 * steps.reshape(shape)).any() or
            np.linalg.norm(error) > _WEIGHT_ERROR * np.linalg.norm(exact)):
        raise LCQError(f'{call.layer}: differs by {error.max()} between its '
                       'weight and the one in 8 bits')
    if call.bias is not None:
        codes, steps = (constants[name] for name in call.bias)
        error = np.abs(codes * steps.astype(np.float64) - bias)
        # Steps are of float32, and codes may be large.
        if (error > 0.501 * steps + 1e-6 * np.abs(bias)).any():
            raise LCQError(f'{call.layer}: differs by {error.max()} between '
                           'its bias and the one in 32 bits')
        bias = codes * steps
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def _check_input(call: Call, layer: Layer, maps: _Maps, graph: IntegerGraph,
                 ranges: Ranges) -> None:
    """Compare what a layer reads with what its quantizer makes of the map."""
    quantizer = input_quantizer(layer)
    source, is_rounded = maps.read(call.source)
    ends: Sequence[Tensor] = _around(source)
    if quantizer is not None:
        own, bits = Grid.of(quantizer), quantizer.config.out_bits or 8
    elif not is_rounded:
        least, largest = map(torch.tensor, ranges[call.source])
        own = Grid.between(least, largest)
    if not is_rounded:
        ends = [own.round(end) for end in ends]
    else:
        ends = source, source
    if quantizer is not None and graph.mode == 'exact':
        levels = Grid.of(quantizer, bits)
        ends = [levels.round(quantizer(end)) for end in ends]
    elif quantizer is not None and is_rounded:
        # Codes of the map are clipped where those of the clip are nearest.
        grid = graph.streams[call.source].grid
        low, high = (grid.round(torch.tensor(end)) for end in own.ends())
        ends = [end.clamp(low, high) for end in ends]
    _check_between(f'input of {call.layer}', maps.found[call.input], *ends)


def _check_grid(name: str, grid: Grid, ranges: Ranges) -> None:
    """Check that a grid covers what was measured, and not much more."""
    if name not in ranges:
        return
    low, high = (ends(end, 0.) for ends, end in zip((min, max), ranges[name]))
    first, last = grid.ends()
    room = 0.51 * grid.step
    if (abs(first - low) > room or abs(last - high) > room) and low < high:
        raise LCQError(f'{name}: its 8-bit range is {first:g} to {last:g}, '
                       f'and that of its values {low:g} to {high:g}')


def _check_between(name: str, value: Tensor, low: Tensor,
                   high: Tensor) -> None:
    if value.shape != low.shape:
        raise LCQError(f'{name}: has the shape {tuple(value.shape)} in '
                       f'onnxruntime and {tuple(low.shape)} in torch')
    room = TOLERANCE * torch.maximum(low.abs(), high.abs()).max().clamp(1e-6)
    outside = torch.maximum(low - value, value - high)
    if not (outside <= room).all():
        raise LCQError(f'{name}: differs by {outside.max()} between '
                       'onnxruntime and torch')


def _around(value: Tensor) -> Tuple[Tensor, Tensor]:
    room = TOLERANCE * value.abs().max()
    return value - room, value + room


def _forward(layer: Layer, x: Tensor, weight: Tensor,
             bias: Optional[Tensor]) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)
