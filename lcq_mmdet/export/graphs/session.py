"""Graphs that onnxruntime runs."""
from functools import cache
from typing import Any, Sequence, Set, Tuple

import numpy as np
import onnx
import onnx.utils
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import (Fail, InvalidArgument,
                                                         InvalidGraph,
                                                         InvalidProtobuf,
                                                         NotImplemented,
                                                         RuntimeException)
from torch import Tensor

from lcq_mmdet.errors import LCQError

ENGINE_ERRORS = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf,
                 NotImplemented, RuntimeException)
_NO_SATURATION = 'session.x64quantprecision'


class Graph:
    """Call a graph with tensors.

    Args:
        model: An ONNX model of ``export_onnx``.
        inputs: Names of the inputs that are given.
        outputs: Names of what is wanted of what follows from them.
        fused: Whether 8-bit operators may be computed in integers; else each
            is computed in float, as it is written.

    Raises:
        LCQError: If onnxruntime does not take it.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Sequence[str],
                 outputs: Sequence[str],
                 fused: bool = True) -> None:
        self.inputs, self.outputs = list(inputs), list(outputs)
        # onnxruntime has no way to leave out what is not wanted.
        part = onnx.utils.Extractor(model).extract_model(
            self.inputs, self.outputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        if not fused:
            options.graph_optimization_level = (
                onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
        elif sums_saturate():
            options.add_session_config_entry(_NO_SATURATION, '1')
            _unshare_weights(part)
        self._session = _start(part, options)

    def __call__(self, *inputs: Tensor) -> Tuple[Tensor, ...]:
        """Compute the outputs, on the device of the inputs.

        Raises:
            LCQError: If the graph cannot take such inputs.
        """
        feeds = (_array(value) for value in inputs)
        try:
            found = self._session.run(self.outputs,
                                      dict(zip(self.inputs, feeds)))
        except ENGINE_ERRORS as error:
            sizes = ', '.join(str(tuple(value.shape)) for value in inputs)
            raise LCQError(f'onnxruntime cannot run it with inputs of shape '
                           f'{sizes}: {error}') from None
        return tuple(
            torch.from_numpy(value).to(inputs[0].device) for value in found)


@cache
def sums_saturate() -> bool:
    """Find out whether 8-bit products are added up in too few bits.

    onnxruntime does so on CPUs without 8-bit dot products (VNNI), unless it
    is told to take other instructions.
    """
    node = onnx.helper.make_node('MatMulInteger', ['x', 'w'], ['y'])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], 'products', [value('x', onnx.TensorProto.UINT8, [4, 64])],
        [value('y', onnx.TensorProto.INT32, [4, 64])],
        [onnx.numpy_helper.from_array(np.full((64, 64), 127, np.int8), 'w')])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid('', 21)], ir_version=10)
    x = np.full((4, 64), 255, np.uint8)
    y, = _start(model, onnxruntime.SessionOptions()).run(None, {'x': x})
    return bool((y != 64 * 255 * 127).any())


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def _start(model: onnx.ModelProto, options: Any) -> Any:
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=['CPUExecutionProvider'])
    except ENGINE_ERRORS as error:
        raise LCQError(f'onnxruntime cannot load it: {error}') from None


def _unshare_weights(model: onnx.ModelProto) -> None:
    """Give each convolution 8-bit weights of its own.

    onnxruntime rewrites them for its other instructions, and fails where it
    has done so before.
    """
    weights = {value.name: value for value in model.graph.initializer
               if value.data_type == onnx.TensorProto.INT8}
    taken: Set[str] = set()
    for node in model.graph.node:
        name = node.input[0] if node.input else ''
        if node.op_type != 'DequantizeLinear' or name not in weights:
            continue
        if name in taken:
            copied = model.graph.initializer.add()
            copied.CopyFrom(weights[name])
            copied.name = node.input[0] = f'{name}/{len(taken)}'
        taken.add(node.input[0])
