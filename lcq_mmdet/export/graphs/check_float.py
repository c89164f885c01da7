"""Whether a graph in float arithmetic computes what torch does."""
from functools import partial
from typing import Any, Dict, List, Mapping, Tuple

import onnx
import torch
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

from .builder import is_layer, layer_name, with_outputs
from .layers import Layer
from .network import DetectorNetwork
from .session import Graph

#: What sums of floats differ by, relative to the largest.
TOLERANCE = 1e-4


@torch.no_grad()
def check_floats(traced: onnx.ModelProto, written: onnx.ModelProto,
                 network: DetectorNetwork,
                 layers: Mapping[str, Layer]) -> None:
    """Compare a graph in float arithmetic with the model, layer by layer.

    Where an input is at a threshold of its quantizer, rounding errors decide,
    and all that follows differs. So the model goes on with the graph's
    values, before and after each of these layers, once both were compared.

    Args:
        traced: The traced graph that it was made from.
        written: The graph in float arithmetic.
        network: The network.
        layers: The layers of the nodes of the traced graph by name.

    Raises:
        LCQError: If they differ; names the layer.
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
        # Some backbones compute what nothing reads, and no graph has it.
        if calls[name]:
            handles += [
                layer.register_forward_pre_hook(partial(before, name)),
                layer.register_forward_hook(partial(after, name))
            ]
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
    unit = expected.abs().max().clamp(min=1e-6)
    if not ((found - expected).abs() <= TOLERANCE * unit).all():
        raise LCQError(f'{name}: differs by {(found - expected).abs().max()} '
                       'between onnxruntime and torch')
