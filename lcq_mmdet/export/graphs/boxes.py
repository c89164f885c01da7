"""Which layers give what boxes are decoded from."""
from typing import Dict, List

import onnx

from .builder import is_layer, layer_name

# Anchor heads, anchor-free heads of points and DETR give scores first and then
# boxes; in others it may be something else, which then stays in float.
_DENSE, _REGIONS = 'head.1.', '.bbox_pred'


def box_layers(traced: onnx.ModelProto) -> List[str]:
    """Name the last layers before the outputs that boxes are decoded from.

    Args:
        traced: A traced graph; where scores and boxes are in one output,
            there is none.
    """
    makers = {
        output: node
        for node in traced.graph.node for output in node.output
    }
    pending = [
        value.name for value in traced.graph.output
        if value.name.startswith(_DENSE) or value.name.endswith(_REGIONS)
    ]
    layers: Dict[str, None] = {}
    while pending:
        node = makers.get(pending.pop())
        if node is not None and is_layer(node):
            layers[layer_name(node)] = None
        elif node is not None:
            pending += node.input
    return list(layers)
