"""Building and rewriting ONNX graphs."""
from typing import Any, Dict, Iterable, List, Tuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from .trace import DOMAIN


class GraphBuilder:
    """Collect the nodes and constants of a graph, in order.

    Attributes:
        nodes: Nodes, each after those that it depends on.
        constants: Initializers by name.
    """

    def __init__(self) -> None:
        self.nodes: List[onnx.NodeProto] = []
        self.constants: Dict[str, TensorProto] = {}
        self._count = 0

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add an initializer unless there is one of the name; return it."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def op(self, op_type: str, *inputs: str, scope: str = '',
           output: str = '', **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        self._count += 1
        name = f'{scope}/{op_type}_{self._count}'
        output = output or name
        self.nodes.append(
            helper.make_node(op_type, inputs, [output], name, **attributes))
        return output

    def model(self, original: onnx.ModelProto,
              version: int) -> onnx.ModelProto:
        """Make a model of the nodes that are used.

        Args:
            original: Model with the inputs and outputs; it is not changed.
            version: Version of the standard operators to write it in.
        """
        model = onnx.ModelProto()
        model.CopyFrom(original)
        needed = {value.name for value in model.graph.output}
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        graph = model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(reversed(kept))
        graph.initializer.extend(
            value for name, value in self.constants.items() if name in needed)
        return onnx.version_converter.convert_version(model, version)


def is_layer(node: onnx.NodeProto) -> bool:
    """Tell whether a node stands for a layer."""
    return node.domain == DOMAIN


def layer_name(node: onnx.NodeProto) -> str:
    """Name the layer that a node stands for."""
    return attributes(node)['layer'].decode()


def attributes(node: onnx.NodeProto) -> Dict[str, Any]:
    """Return the values of a node's attributes by name."""
    return {
        attribute.name: helper.get_attribute_value(attribute)
        for attribute in node.attribute
    }


def conv_attributes(layer: nn.Conv2d) -> Dict[str, Any]:
    """Return the attributes of the ONNX operator for a convolution."""
    # What torch pads, last axis first.
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return dict(
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=[top, left, bottom, right],
        dilations=list(layer.dilation),
        group=layer.groups)


def with_outputs(
    model: onnx.ModelProto, names: Iterable[str]
) -> Tuple[onnx.ModelProto, List[str], List[str]]:
    """Copy a model and make inner values outputs, too.

    Returns:
        The copy, and the names of its inputs and outputs.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    known = {value.name for value in (*graph.input, *graph.output)}
    graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in names
        if name not in known)
    return (copied, [value.name for value in graph.input],
            [value.name for value in graph.output])
