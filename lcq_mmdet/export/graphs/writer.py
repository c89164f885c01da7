"""From a trained quantized model to an ONNX file."""
import os.path as osp
from functools import partial
from typing import (Any, Callable, Dict, Iterable, List, Mapping, Optional,
                    Tuple)

import onnx
import torch
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

from ..codebook import Coded, encode
from ..files import replacing, to_literal
from ..writer import Progress, check_exportable
from .builder import is_layer, layer_name, with_outputs
from .checking import check_calls
from .integer import IntegerLowering
from .metadata import write_metadata
from .network import DetectorNetwork
from .operators import array, lower
from .session import Graph
from .streams import measure_ranges
from .trace import Layer, exportable_layers, trace

TOLERANCE = 1e-4


@torch.no_grad()
def export_onnx(model: nn.Module,
                path: str,
                config: Mapping[str, Any],
                meta: Mapping[str, Any] = {},
                progress: Progress = iter,
                int8: Optional[str] = None,
                images: Iterable[Tensor] = ()) -> int:
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

    Returns:
        Size of the file in bytes.

    Raises:
        LCQError: If a layer cannot be exported, or the file cannot be
            written or computes something else; what is at ``path`` is as it
            was.
    """
    check_exportable(model)
    layers = exportable_layers(model)
    network = DetectorNetwork(model)
    texts = to_literal(config), to_literal(meta)
    traced = trace(network)
    weights = {name: _encode(name, layers[name])
               for name in progress(list(layers))}
    graph = lower(traced, layers, weights)
    verify: Callable[..., None] = partial(_verify, traced)
    if int8 is not None:
        integer = IntegerLowering(traced, layers)
        ranges = measure_ranges(graph, integer.streams, network, images)
        graph = integer.lower(ranges, int8)
        verify = partial(check_calls, integer.calls)
    write_metadata(graph, *texts)
    with replacing(path) as temporary:
        onnx.save(graph, temporary)
        written = onnx.load(temporary)
        onnx.checker.check_model(written, full_check=True)
        verify(written, network, layers)
        return osp.getsize(temporary)


def _encode(name: str, layer: Layer) -> Coded:
    """Find codes and codebook of a layer's weight, scales left out."""
    quantizer = layer.weight_quantizer
    if quantizer.weight_norm == 'channel':
        values = quantizer.factors(layer.weight)[0]
    else:
        values = layer.quantized_weight()
    try:
        return encode(array(values))
    except ValueError as error:
        raise LCQError(f'{name}: its weight has {error}') from None


def _verify(traced: onnx.ModelProto, written: onnx.ModelProto,
            network: DetectorNetwork, layers: Mapping[str, Layer]) -> None:
    """Compare a graph with the model, from quantized layer to layer.

    Where an input is at a threshold of its quantizer, rounding errors decide,
    and all that follows differs. So the model goes on with the graph's
    values, before and after each quantized layer, once both were compared.
    """
    calls: Dict[str, List[onnx.NodeProto]] = {name: [] for name in layers}
    for node in traced.graph.node:
        if is_layer(node):
            calls[layer_name(node)].append(node)
    inner = {
        name
        for nodes in calls.values() for node in nodes
        for name in (node.input[0], node.output[0])
    }
    graph = Graph(*with_outputs(written, sorted(inner)))
    # Of another size than the one that the network was traced with.
    inputs = network.example(*network.size[::-1])
    found = dict(zip(graph.inputs + graph.outputs, inputs + graph(*inputs)))

    def before(name: str, layer: nn.Module, args: Tuple[Tensor]) -> Tensor:
        value = found[calls[name][0].input[0]]
        _compare(f'input of {name}', value, args[0])
        return value

    def after(name: str, layer: nn.Module, args: Any,
              output: Tensor) -> Tensor:
        value = found[calls[name].pop(0).output[0]]
        _compare(name, value, output)
        return value

    handles = []
    for name, layer in layers.items():
        handles += [layer.register_forward_pre_hook(partial(before, name)),
                    layer.register_forward_hook(partial(after, name))]
    try:
        for name, value in network.compute(*inputs).items():
            _compare(name, found[name], value)
    finally:
        for handle in handles:
            handle.remove()


def _compare(name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise LCQError(f'{name}: has the shape {tuple(found.shape)} in '
                       f'onnxruntime and {tuple(expected.shape)} in torch')
    unit = expected.abs().max().clamp(min=1)
    if not ((found - expected).abs() <= TOLERANCE * unit).all():
        raise LCQError(f'{name}: differs by {(found - expected).abs().max()} '
                       'between onnxruntime and torch')
