"""From a trained quantized model to an ONNX file."""
import os.path as osp
from itertools import chain
from typing import (Any, Callable, Dict, Iterable, Mapping, NamedTuple,
                    Optional, Sequence, Tuple)

import onnx
import torch
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError
from lcq_mmdet.report.cost import count_macs
from lcq_mmdet.report.files import replacing

from ..engines import ENGINES
from ..files import to_literal
from ..writer import Progress, check_exportable, encode_weight
from .boxes import box_layers
from .check_float import check_floats
from .check_integer import check_integers
from .integer import IntegerLowering
from .layers import Layer, exportable_layers, float_layers
from .metadata import write_metadata
from .network import DetectorNetwork
from .operators import lower
from .ranges import measure_ranges
from .trace import trace


class Export(NamedTuple):
    """What was written.

    Attributes:
        size: Size of the file in bytes.
        integer_share: Share of multiply-accumulates that are 8-bit ones,
            [0, 1], for the first image that the ranges are from.
        left_float: Why layers are not computed in integers, by name.
    """
    size: int
    integer_share: float
    left_float: Mapping[str, str]


@torch.no_grad()
def export_onnx(model: nn.Module,
                path: str,
                config: Mapping[str, Any],
                meta: Mapping[str, Any] = {},
                progress: Progress = iter,
                int8: Optional[str] = None,
                images: Iterable[Tensor] = (),
                keep_float: Optional[Sequence[str]] = None,
                engine: str = ENGINES[0]) -> Export:
    """Write backbone, neck and heads as an ONNX graph.

    The file is written under another name, read again and compared with the
    model; only then does it replace what is at ``path``.

    Args:
        model: A converted detector with trained or calibrated quantizers,
            not wrapped, in eval mode; it is not changed.
        path: Where the file goes; ends in ``.onnx``.
        config: The full config, as plain data.
        meta: What else a checkpoint's ``meta`` has: plain data.
        progress: Wraps the names of the layers to write.
        int8: ``None`` for float arithmetic, or how layers get their inputs
            in 8-bit arithmetic: ``'exact'``, as their levels rounded to 8
            bits, or ``'relaxed'``, at 8 bits with the learned clip.
        images: For 8 bits: batches of preprocessed images, shape (batch, 3,
            height, width), whose maps give the range of what has no learned
            clip; one or more.
        keep_float: For 8 bits: patterns of layers that training left in
            float, and which stay so, beside those that boxes are decoded
            from; others are computed in 8 bits, too. With an empty list all
            are.
        engine: For 8 bits: ``'onnxruntime'`` or ``'openvino'``, the engine
            that the file is to be fast in; both compute the same.

    Raises:
        LCQError: If a layer cannot be exported, a pattern covers none, there
            is no image, or the file cannot be written or computes something
            else; what is at ``path`` is as it was.
    """
    check_exportable(model)
    quantized = exportable_layers(model)
    network = DetectorNetwork(model)
    layers: Dict[str, Layer] = dict(quantized)
    left: Mapping[str, str] = {}
    if int8 is not None:
        others, left = _in_integers(network, quantized, keep_float)
        layers.update(others)
    texts = to_literal(config), to_literal(meta)
    traced = trace(network, layers)
    weights = {name: encode_weight(name, quantized[name])
               for name in progress(list(quantized))}
    graph = lower(traced, layers, weights)
    if int8 is None:
        write_metadata(graph, *texts)
        return Export(
            _replace(path, graph, lambda written: check_floats(
                traced, written, network, layers)), 0., {})
    check_floats(traced, graph, network, layers)
    lowering = IntegerLowering(traced, layers)
    first, images = _first(images)
    ranges = measure_ranges(graph, lowering.measured, network, images)
    integer = lowering.lower(ranges, int8, engine)
    write_metadata(integer.model, *texts)
    # Of another size than the one that the network was traced with.
    height, width = network.size[::-1]
    part = first[:, :, :height, :width]
    inputs = part, *network.pool(part)
    size = _replace(
        path, integer.model, lambda written: check_integers(
            integer, written, traced, layers, ranges, inputs))
    with count_macs(model) as macs:
        network(first, *network.pool(first))
    done = sum(macs[name] for name in {call.layer for call in integer.calls})
    return Export(size, done / sum(macs.values()), left)


def _in_integers(
    network: DetectorNetwork, quantized: Mapping[str, Layer],
    keep_float: Optional[Sequence[str]]
) -> Tuple[Dict[str, Layer], Dict[str, str]]:
    """Choose among the layers that training left in float.

    Returns:
        Those that are computed in 8 bits, by name, and why others are not.
    """
    layers, left = float_layers(network.detector, keep_float or ())
    if keep_float != []:
        everything, _ = float_layers(network.detector)
        for name in box_layers(trace(network, {**quantized, **everything})):
            if layers.pop(name, None) is not None:
                left[name] = 'boxes are decoded from what it gives'
    return layers, left


def _replace(path: str, graph: onnx.ModelProto,
             check: Callable[[onnx.ModelProto], None]) -> int:
    """Write a graph, read it again, check it, and return the file's size."""
    with replacing(path) as temporary:
        onnx.save(graph, temporary)
        written = onnx.load(temporary)
        onnx.checker.check_model(written, full_check=True)
        check(written)
        return osp.getsize(temporary)


def _first(images: Iterable[Tensor]) -> Tuple[Tensor, Iterable[Tensor]]:
    """Return the first image, shape (1, ...), and all batches again."""
    images = iter(images)
    batch = next(images, None)
    if batch is None:
        raise LCQError('--int8: there is no image to measure ranges with')
    return batch[:1], chain([batch], images)
