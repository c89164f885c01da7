"""Weights in 8 bits, with batch normalization folded in."""
from typing import NamedTuple, Optional

import numpy as np
import onnx
from onnx import numpy_helper

from .builder import attributes
from .grid import Grid, weight_step
from .operators import array, in_order
from .trace import Layer


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
        affine: What is folded in, if anything is.
    """
    codes: np.ndarray
    steps: np.ndarray
    bias: np.ndarray
    affine: Optional[Affine]


def round_weight(layer: Layer, affine: Optional[Affine]) -> RoundedWeight:
    """Round a layer's weight to 8 bits.

    Args:
        layer: The layer.
        affine: What follows it, if it is to be folded in.
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
    wide = np.maximum(steps, least).clip(1e-20).astype(np.float32)
    change = (np.sign(factor) * steps / wide).reshape(
        -1, *[1] * (codes.ndim - 1))
    codes = np.rint(codes * change).clip(-127, 127).astype(np.int8)
    return RoundedWeight(
        in_order(layer, codes), wide.astype(np.float64), bias, affine)


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
