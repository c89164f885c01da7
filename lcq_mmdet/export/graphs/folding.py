"""Weights in 8 bits, with batch normalization folded in."""
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from lcq_mmdet.quantization.layers import QuantizedLayer

from .builder import GraphBuilder, attributes
from .grid import weight_step
from .layers import Layer
from .operators import array, in_order


class Affine(NamedTuple):
    """What batch normalization does to each channel."""
    scale: np.ndarray
    shift: np.ndarray


class RoundedWeight(NamedTuple):
    """A weight in 8 bits, and the bias that goes with it.

    Attributes:
        codes: Signed, int8, as the layer's operator takes it.
        steps: What codes are multiplied by, values of float32, shape (out).
        bias: Bias in float, shape (out).
    """
    codes: np.ndarray
    steps: np.ndarray
    bias: np.ndarray


def fold(layer: Layer,
         affine: Optional[Affine]) -> Tuple[np.ndarray, np.ndarray]:
    """Find the factor of each output channel, and the bias, shape (out)."""
    bias, factor = np.zeros(len(layer.weight)), np.ones(len(layer.weight))
    if layer.bias is not None:
        bias = array(layer.bias).astype(np.float64)
    if affine is not None:
        factor = affine.scale
        bias = bias * factor + affine.shift
    return factor, bias


def round_weight(layer: Layer, affine: Optional[Affine],
                 input_step: float) -> RoundedWeight:
    """Round a layer's weight to 8 bits.

    The levels of a quantized layer are taken as they are, as integers; a
    float layer's weight has a step for each output channel.

    Args:
        layer: The layer.
        affine: What follows it, if it is to be folded in.
        input_step: Step of its 8-bit input.
    """
    factor, bias = fold(layer, affine)
    if isinstance(layer, QuantizedLayer):
        values = array(layer.quantized_weight())
        step = weight_step(layer.weight_quantizer, layer.weight)
    else:
        values = array(layer.weight)
        rest = tuple(range(1, values.ndim))
        step = np.abs(values).max(rest, keepdims=True).clip(1e-20) / 127
    codes = np.rint(values / step)
    # The sum of a bias and products fits into 32 bits.
    least = np.abs(bias) / input_step / 2**30
    steps = np.abs(factor) * step.reshape(-1)
    wide = np.maximum(steps, least).clip(1e-20).astype(np.float32)
    change = (np.sign(factor) * steps / wide).reshape(
        -1, *[1] * (codes.ndim - 1))
    codes = np.rint(codes * change).clip(-127, 127).astype(np.int8)
    return RoundedWeight(
        in_order(layer, codes), wide.astype(np.float64), bias)


class WrittenWeight(NamedTuple):
    """A rounded weight with the names of its codes and steps in a graph."""
    names: Tuple[str, str]
    rounded: RoundedWeight


class WeightWriter:
    """Write each weight once for all calls of its layer.

    Args:
        builder: What constants are added to.
        traced: The traced graph, which has those of batch normalization.
    """

    def __init__(self, builder: GraphBuilder,
                 traced: onnx.ModelProto) -> None:
        self._builder, self._traced = builder, traced
        self._written: Dict[tuple, List[WrittenWeight]] = {}
        self._count = 0

    def write(self,
              name: str,
              layer: Layer,
              input_step: float,
              batch_norm: Optional[onnx.NodeProto] = None) -> WrittenWeight:
        """Write a weight, or find it among those written before.

        Calls share it unless the steps of their inputs are so different that
        it becomes another.

        Args:
            name: Name of the layer.
            layer: The layer.
            input_step: Step of its 8-bit input.
            batch_norm: Node that is folded in.
        """
        weight = round_weight(
            layer, batch_norm and read_affine(self._traced, batch_norm),
            input_step)
        known = self._written.setdefault(
            (name, batch_norm and batch_norm.name), [])
        for written in known:
            if np.array_equal(written.rounded.steps, weight.steps):
                return written
        self._count += 1
        names = self.with_steps(f'{name}/{self._count}.weight', weight.codes,
                                weight.steps)
        known.append(WrittenWeight(names, weight))
        return known[-1]

    def with_steps(self, name: str, codes: np.ndarray,
                   steps: np.ndarray) -> Tuple[str, str]:
        """Add codes and their steps as constants; return their names."""
        constant = self._builder.constant
        return (constant(name, codes),
                constant(f'{name}.step', steps.astype(np.float32)))


def read_affine(traced: onnx.ModelProto, node: onnx.NodeProto) -> Affine:
    """Read a node of batch normalization of a traced graph."""
    gamma, beta, mean, variance = (
        _constant(traced, name).astype(np.float64)
        for name in node.input[1:5])
    scale = gamma / np.sqrt(variance + attributes(node)['epsilon'])
    return Affine(scale, beta - mean * scale)


def _constant(traced: onnx.ModelProto, name: str) -> np.ndarray:
    """Look an initializer up through the nodes that only rename it."""
    for node in traced.graph.node:
        if node.op_type == 'Identity' and node.output[0] == name:
            return _constant(traced, node.input[0])
    return numpy_helper.to_array(
        next(value for value in traced.graph.initializer
             if value.name == name))
