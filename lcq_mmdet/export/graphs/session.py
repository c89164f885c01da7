"""A detector whose network is a graph that onnxruntime runs."""
from functools import cache
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np
import onnx
import onnx.utils
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnxruntime.capi.onnxruntime_pybind11_state import (Fail, InvalidArgument,
                                                         InvalidGraph,
                                                         InvalidProtobuf,
                                                         NotImplemented,
                                                         RuntimeException)
from torch import Tensor

from lcq_mmdet.errors import LCQError

from ..files import check_version, checksum, checksum_of_text, from_literal
from .network import (IMAGE, POOLED, check_supported, dense_head,
                      dense_outputs, features, second_stage_outputs)

FORMAT = 'lcq_mmdet.onnx'
VERSION = 1
ENGINE_ERRORS = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf,
                 NotImplemented, RuntimeException)
_NO_SATURATION = 'session.x64quantprecision'
# What may differ between the config of a file and the one that it runs with.
_FREE = ('train_cfg', 'test_cfg', 'init_cfg', 'pretrained')


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
        """Compute the outputs, on the device of the inputs."""
        feeds = (value.detach().cpu().float().numpy() for value in inputs)
        found = self._session.run(self.outputs,
                                  dict(zip(self.inputs, feeds)))
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


def run_graph_in_(detector: Any, path: str,
                  config: Mapping[str, Any]) -> Any:
    """Let a graph compute the network of a detector, in place.

    What the detector's own modules would compute is not computed any more;
    mmdet does the rest as before.

    Args:
        detector: A detector of the float model's class, in any state.
        path: File of ``tools/export.py``.
        config: The model's part of the config of the quantized detector.

    Returns:
        The detector.

    Raises:
        LCQError: If the file cannot be read, is altered, of a newer version
            or of another config.
    """
    check_supported(detector)
    try:
        model = onnx.load(path)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        own = _read_metadata(model, metadata)
        _check_config(own['model'], config)
        names = [value.name for value in model.graph.output]
        second = second_stage_outputs(names)
        first = [name for name in names if name not in second]
        network = Graph(model, [IMAGE], first)
        box_head = Graph(model, [POOLED], second) if second else None
    except (OSError, DecodeError) as error:
        raise LCQError(f'{path}: is no ONNX file that can be read: '
                       f'{error}') from None
    except LCQError as error:
        raise LCQError(f'{path}: {error}') from None

    def extract_feat(image: Tensor) -> Tuple[Tensor, ...]:
        values = network(image)
        found = _Features(features(first, values))
        found.dense = dense_outputs(first, values)
        return found

    def forward(feats: '_Features') -> Tuple[List[Tensor], ...]:
        return feats.dense

    detector.extract_feat = extract_feat
    dense_head(detector).forward = forward
    if box_head:
        detector.roi_head.bbox_head.forward = box_head.__call__
    return detector


class _Features(tuple):
    """Feature maps, and what the dense head makes of them."""
    dense: Tuple[List[Tensor], ...]


def write_metadata(model: onnx.ModelProto, config: str, meta: str) -> None:
    """Write what a reader checks into a graph's metadata."""
    metadata = dict(
        format=FORMAT,
        version=str(VERSION),
        config=config,
        meta=meta,
        graph=_graph_checksum(model))
    metadata['checksum'] = checksum_of_text(metadata)
    onnx.helper.set_model_props(model, metadata)


def _graph_checksum(model: onnx.ModelProto) -> str:
    return checksum(model.graph.SerializeToString(deterministic=True))


def _read_metadata(model: onnx.ModelProto,
                   metadata: Dict[str, str]) -> Dict[str, Any]:
    """Return the config of a file after checking the rest."""
    if metadata.get('format') != FORMAT:
        raise LCQError('is not a graph of tools/export.py')
    check_version(metadata, VERSION)
    if metadata.pop('checksum', None) != checksum_of_text(metadata):
        raise LCQError('is altered: its metadata do not fit their checksum')
    if metadata['graph'] != _graph_checksum(model):
        raise LCQError('is altered: its graph does not fit its checksum')
    return from_literal(metadata['config'])


def _check_config(own: Any, given: Any) -> None:
    difference = _difference(own, given, 'model')
    if difference:
        raise LCQError(f'is of another config: {difference}')


def _difference(own: Any, given: Any, key: str) -> Optional[str]:
    """Describe the first difference of two configs, if there is any."""
    if isinstance(own, Mapping) and isinstance(given, Mapping):
        for name in {**own, **given}:
            if name in _FREE:
                continue
            found = _difference(
                own.get(name), given.get(name), f'{key}.{name}')
            if found:
                return found
        return None
    if isinstance(own, (list, tuple)) and isinstance(given, (list, tuple)):
        own, given = list(own), list(given)
    if own != given:
        return f'{key} is {own!r:.60} in the file and {given!r:.60}'
    return None
