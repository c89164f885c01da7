"""The maps of a traced graph: who reads them, and which are streams."""
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

import onnx
from torch import nn

from .builder import is_layer, layer_name
from .layers import Layer, input_quantizer

#: Operators that keep an 8-bit map on its grid.
SAME_GRID = ('MaxPool', 'Resize')


class Maps:
    """The maps of a traced graph.

    Args:
        traced: A traced graph.
        layers: The layers that are computed in integers by name.

    Attributes:
        streams: Names of the maps that get a grid of their own where they
            are made, in order.
        inputs: Names of other maps, which are rounded where layers without
            a quantizer read them.
    """

    def __init__(self, traced: onnx.ModelProto,
                 layers: Mapping[str, Layer]) -> None:
        self._layers = layers
        self._readers: Dict[str, List[onnx.NodeProto]] = {}
        for node in traced.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {value.name for value in traced.graph.output}
        self.streams, self.inputs = self._find_streams(traced.graph.node)

    def only_reader(self, name: str) -> Optional[onnx.NodeProto]:
        """Return the node that reads a map, where there is just one."""
        readers = self._readers.get(name, [])
        return readers[0] if (len(readers) == 1
                              and name not in self._outputs) else None

    def is_conv(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node stands for a convolution in integers."""
        return is_layer(node) and isinstance(self._layers[layer_name(node)],
                                             nn.Conv2d)

    def _has_quantizer(self, node: onnx.NodeProto) -> bool:
        return is_layer(node) and input_quantizer(
            self._layers[layer_name(node)]) is not None

    def _find_streams(
            self, nodes: Iterable[onnx.NodeProto]
    ) -> Tuple[List[str], List[str]]:
        streams: Dict[str, None] = {}
        inputs: Dict[str, None] = {}
        integer = set()
        on_grid = set()
        for node in nodes:
            name = node.output[0]
            if (is_layer(node) and not self._has_quantizer(node)
                    and node.input[0] not in on_grid):
                inputs[node.input[0]] = None
            reader = self.only_reader(name)
            if node.op_type == 'Add' and not is_layer(node):
                made = all(value in integer for value in node.input)
            elif node.op_type in ('BatchNormalization', 'Relu'):
                made = node.input[0] in integer and node.input[
                    0] not in streams
            else:
                made = self.is_conv(node)
            if not made:
                if node.op_type in SAME_GRID and node.input[0] in on_grid:
                    integer.add(name)
                    on_grid.add(name)
                continue
            integer.add(name)
            followed = reader is not None and (
                reader.op_type in ('BatchNormalization', 'Relu')
                or self._has_quantizer(reader))
            if not followed:
                streams[name] = None
                on_grid.add(name)
        return list(streams), list(inputs)
