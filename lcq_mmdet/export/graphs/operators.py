"""Quantized layers in standard ONNX operators, in float arithmetic."""
from typing import Dict, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from lcq_mmdet.functional import slopes_and_knots
from lcq_mmdet.quantization.layers import LCQConv2d, LCQLinear
from lcq_mmdet.quantization.quantizer import LCQQuantizer

from ..codebook import Coded
from .builder import GraphBuilder, conv_attributes, is_layer, layer_name
from .trace import Layer

# The narrowest type of codes by the bits it has, and the first version of the
# operators with it.
_CODES = {
    2: (ml_dtypes.uint2, 25),
    4: (ml_dtypes.uint4, 21),
    8: (np.uint8, 21)
}


def lower(model: onnx.ModelProto, layers: Mapping[str, Layer],
          weights: Mapping[str, Coded]) -> onnx.ModelProto:
    """Write quantized layers in standard operators.

    A weight is ``Gather(codebook, Cast(codes))`` with codes of 2, 4 or 8
    bits, an input quantizer the compander and a table of its levels.

    Args:
        model: A traced graph.
        layers: The quantized layers by name.
        weights: Their weights as codes and codebook.
    """
    builder = GraphBuilder()
    builder.constants.update((c.name, c) for c in model.graph.initializer)
    done: Dict[str, str] = {}
    version = 0
    for node in model.graph.node:
        if not is_layer(node):
            builder.nodes.append(node)
            continue
        name = layer_name(node)
        layer = layers[name]
        x = quantize(builder, node.input[0], layer.act_quantizer,
                     f'{name}.act_quantizer')
        if name not in done:
            bits = min(bits for bits in _CODES
                       if layer.weight_quantizer.bits <= bits)
            dtype, needs = _CODES[bits]
            version = max(version, needs)
            done[name] = _weight(builder, weights[name].codes.astype(dtype),
                                 weights[name].codebook, layer, name)
        bias = [] if layer.bias is None else [
            builder.constant(f'{name}.bias', array(layer.bias))]
        apply(builder, layer, x, [done[name], *bias], name, node.output[0])
    return builder.model(model, version)


def apply(builder: GraphBuilder, layer: Layer, x: str,
          parameters: Sequence[str], scope: str, output: str = '') -> str:
    """Add a layer's own operator and return its output.

    Args:
        builder: What it is added to.
        layer: The layer.
        x: Name of its input.
        parameters: Names of weight and, if there is one, bias; the weight of
            a linear layer is transposed, (in, out).
        scope: Prefix of new names.
        output: Name of the output, if it has one already.
    """
    if isinstance(layer, LCQConv2d):
        return builder.op('Conv', x, *parameters, scope=scope, output=output,
                          **conv_attributes(layer))
    weight, *bias = parameters
    y = builder.op('MatMul', x, weight, scope=scope,
                   output='' if bias else output)
    return builder.op(
        'Add', y, *bias, scope=scope, output=output) if bias else y


def in_order(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """Put what has a weight's shape, or fits it, as :func:`apply` takes it."""
    return np.ascontiguousarray(weight.T) if isinstance(
        layer, LCQLinear) else weight


def array(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to the host."""
    return tensor.detach().cpu().numpy().copy()


def _weight(builder: GraphBuilder, codes: np.ndarray, codebook: np.ndarray,
            layer: Layer, name: str) -> str:
    scale = None
    if layer.weight_quantizer.weight_norm == 'channel':
        scale = builder.constant(
            f'{name}.weight_quantizer.scale',
            in_order(layer,
                     array(layer.weight_quantizer.scale(layer.weight))))
    codes = in_order(layer, codes.reshape(tuple(layer.weight.shape)))
    index = builder.op(
        'Cast',
        builder.constant(f'{name}.weight', codes),
        scope=name,
        to=TensorProto.INT32)
    book = builder.constant(f'{name}.weight_quantizer.codebook', codebook)
    weight = builder.op('Gather', book, index, scope=name)
    return weight if scale is None else builder.op(
        'Mul', scale, weight, scope=name)


@torch.no_grad()
def quantize(builder: GraphBuilder, x: str, quantizer: LCQQuantizer,
             scope: str) -> str:
    """Add the operators of an input quantizer.

    They compute what the reference does in the same order, so that the same
    input gets the same level: with v the magnitude over the clip in interval
    i, that of the code round(s (slope_i (v - i / K) + knot_i)).

    Returns:
        Name of the quantized input.
    """

    def constant(name: str, value: Tensor) -> str:
        return builder.constant(f'{scope}.{name}', array(value))

    def op(op_type: str, *inputs: str, **attributes) -> str:
        return builder.op(op_type, *inputs, scope=scope, **attributes)

    theta, steps = quantizer.theta, quantizer.num_steps
    zero, one = constant('zero', theta.new_zeros(())), constant(
        'one', theta.new_ones(()))
    sign = op('Sign', x) if quantizer.is_symmetric else None
    table = quantizer.clip * quantizer.levels()
    if sign:
        x = op('Abs', x)
        table = torch.cat([-table.flip(0), table[1:]])
    elif quantizer.lowest is not None:
        x = op('Sub', x, constant('offset', quantizer.lowest))
        table = quantizer.lowest + table
    table = quantizer.requantize(table)
    v = op('Clip', op('Div', x, constant('clip', quantizer.clip)), zero, one)
    if theta.any():
        slopes, knots = slopes_and_knots(theta)
        starts = torch.arange(len(theta)) / len(theta)
        count = constant('num_intervals', theta.new_tensor(len(theta)))
        last = constant('last', theta.new_tensor(len(theta) - 1))
        index = op('Cast', op('Min', op('Mul', v, count), last),
                   to=TensorProto.INT32)
        slope, knot, start = (
            op('Gather', constant(name, values), index) for name, values in (
                ('slopes', slopes), ('knots', knots), ('starts', starts)))
        v = op('Add', op('Mul', slope, op('Sub', v, start)), knot)
    num_steps = constant('num_steps', theta.new_tensor(steps))
    code = op('Round', op('Mul', v, num_steps))
    if sign:
        code = op('Add', op('Mul', code, sign), num_steps)
    return op('Gather', constant('levels', table),
              op('Cast', code, to=TensorProto.INT32))
