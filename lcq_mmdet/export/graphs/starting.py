"""How onnxruntime and OpenVINO start a graph, on the CPU."""
from functools import cache
from typing import Any, Callable, Dict, List, Mapping, Sequence, Set

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import (Fail, InvalidArgument,
                                                         InvalidGraph,
                                                         InvalidProtobuf,
                                                         NotImplemented,
                                                         RuntimeException)

from lcq_mmdet.errors import LCQError

from ..engines import check_engine

ENGINE_ERRORS = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf,
                 NotImplemented, RuntimeException)
#: From inputs by name to the wanted outputs, in their order.
Run = Callable[[Mapping[str, np.ndarray]], List[np.ndarray]]
_NO_SATURATION = 'session.x64quantprecision'


def start(engine: str, model: onnx.ModelProto, outputs: Sequence[str],
          fused: bool) -> Run:
    """Prepare a graph for one of the engines.

    Args:
        engine: ``'onnxruntime'`` or ``'openvino'``.
        model: The graph; its weights may be rearranged.
        outputs: Names of what is wanted.
        fused: Whether 8-bit operators may be computed in integers;
            onnxruntime only.

    Raises:
        LCQError: If the engine is not installed or does not take the graph.
    """
    check_engine(engine)
    if engine == 'openvino':
        return _start_openvino(model, outputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if not fused:
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    elif sums_saturate():
        options.add_session_config_entry(_NO_SATURATION, '1')
        _unshare_weights(model)
    session = _session(model, options)

    def run(feeds: Mapping[str, np.ndarray]) -> List[np.ndarray]:
        found: List[np.ndarray] = session.run(outputs, feeds)
        return found

    return run


def _start_openvino(model: onnx.ModelProto, outputs: Sequence[str]) -> Run:
    # In less than 32 bits, as CPUs with AMX would, results are others.
    settings: Dict[str, Any] = dict(
        PERFORMANCE_HINT='LATENCY',
        INFERENCE_PRECISION_HINT='f32',
        INFERENCE_NUM_THREADS=torch.get_num_threads())
    core = _openvino_core()
    try:
        compiled = core.compile_model(
            core.read_model(model.SerializeToString()), 'CPU', settings)
    except RuntimeError as error:
        reason = str(error).strip().split('\n')[-1]
        raise LCQError(f'OpenVINO cannot load it: {reason}') from None

    def run(feeds: Mapping[str, np.ndarray]) -> List[np.ndarray]:
        # What is shared is written over by the next call.
        found = compiled(feeds, share_outputs=False)
        return [found[name] for name in outputs]

    return run


@cache
def _openvino_core() -> Any:
    """Return the one that this process has.

    With another one, OpenVINO 2026.4 may free the stack that signals of this
    thread are handled on, and the process ends at the next signal.
    """
    import openvino
    return openvino.Core()


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
    y, = _session(model, onnxruntime.SessionOptions()).run(None, {'x': x})
    return bool((y != 64 * 255 * 127).any())


def _session(model: onnx.ModelProto, options: Any) -> Any:
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
