"""Quantized layers in standard ONNX operators, in float arithmetic."""
from typing import Any, Dict, Mapping, Optional, Sequence

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from lcq_mmdet.functional import slopes_and_knots
from lcq_mmdet.quantization.quantizer import LCQQuantizer
from lcq_mmdet.quantization.weight import QuantizedWeight

from .builder import GraphBuilder, conv_attributes, is_layer, layer_name
from .layers import Layer, input_quantizer

# The narrowest type of codes by the bits it has, and the first version of the
# operators with it.
_CODES = {
    2: (ml_dtypes.uint2, 25),
    4: (ml_dtypes.uint4, 21),
    8: (np.uint8, 21)
}


def lower(model: onnx.ModelProto, layers: Mapping[str, Layer],
          weights: Mapping[str, QuantizedWeight]) -> onnx.ModelProto:
    """Write layers in standard operators, in float arithmetic.

    A weight is ``Gather(codebook, Cast(codes))`` with codes of 2, 4 or 8
    bits, an input quantizer the compander and a table of its levels.

    Args:
        model: A traced graph.
        layers: The layers by name.
        weights: The weights of the quantized ones among them.
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
        x, quantizer = node.input[0], input_quantizer(layer)
        if quantizer is None:
            done[name] = builder.constant(
                f'{name}.weight', in_order(layer, array(layer.weight)))
        else:
            x = quantize(builder, x, quantizer, f'{name}.act_quantizer')
            if name not in done:
                bits = quantizer.config.weight_bits
                dtype, needs = _CODES[min(n for n in _CODES if bits <= n)]
                version = max(version, needs)
                done[name] = _weight(builder, weights[name], dtype, layer,
                                     name)
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
    if isinstance(layer, nn.Conv2d):
        return builder.op('Conv', x, *parameters, scope=scope, output=output,
                          **conv_attributes(layer))
    weight, *bias = parameters
    y = builder.op('MatMul', x, weight, scope=scope,
                   output='' if bias else output)
    return builder.op(
        'Add', y, *bias, scope=scope, output=output) if bias else y


def look_up(builder: GraphBuilder, codes: str, table: np.ndarray, name: str,
            scope: str, rows: Optional[int]) -> str:
    """Look codes up in a table.

    OpenVINO is fast at Gather, where onnxruntime takes several times as long
    as with GatherElements, whose rows are shared out among threads.

    Args:
        builder: What it is added to.
        codes: Name of a map of codes, uint8.
        table: What they stand for, uint8, shape (256).
        name: Name of the table.
        scope: Prefix of new names.
        rows: Number of rows for GatherElements, which divides the number of
            codes; ``None`` for Gather.
    """

    def op(op_type: str, *inputs: str, **attributes: Any) -> str:
        return builder.op(op_type, *inputs, scope=scope, **attributes)

    index = op('Cast', codes, to=TensorProto.INT32)
    if rows is None:
        return op('Gather', builder.constant(name, table), index)
    shape = builder.constant(f'{rows}_rows', np.array([rows, -1]))
    tables = builder.constant(name, np.tile(table, (rows, 1)))
    found = op('GatherElements', tables, op('Reshape', index, shape), axis=1)
    return op('Reshape', found, op('Shape', codes))


def in_order(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """Put what has a weight's shape, or fits it, as :func:`apply` takes it."""
    return np.ascontiguousarray(weight.T) if isinstance(
        layer, nn.Linear) else weight


def array(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to the host."""
    return tensor.detach().cpu().numpy().copy()


def _weight(builder: GraphBuilder, weight: QuantizedWeight, dtype: type,
            layer: Layer, name: str) -> str:
    codes, codebook, scale = weight
    index = builder.op(
        'Cast',
        builder.constant(f'{name}.weight',
                         in_order(layer, codes.astype(dtype))),
        scope=name,
        to=TensorProto.INT32)
    book = builder.constant(f'{name}.weight_quantizer.codebook', codebook)
    values = builder.op('Gather', book, index, scope=name)
    if scale is None:
        return values
    factors = builder.constant(
        f'{name}.weight_quantizer.scale',
        in_order(layer, scale.reshape(-1, *[1] * (codes.ndim - 1))))
    return builder.op('Mul', factors, values, scope=name)


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

    def op(op_type: str, *inputs: str, **attributes: Any) -> str:
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
