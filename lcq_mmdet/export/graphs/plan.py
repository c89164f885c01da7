"""What a graph in 8-bit arithmetic consists of."""
from typing import Dict, List, NamedTuple, Optional, Tuple

import onnx

from .folding import Affine
from .grid import Grid


class Call(NamedTuple):
    """A call of a layer.

    Attributes:
        layer: Name of the layer.
        source: Map of the traced graph that it reads.
        made: Map of the traced graph that it makes, folded parts included.
        input: Value that is its 8-bit input.
        output: Value that is what it makes.
        weight: Names of codes and steps of its weight.
        bias: Those of its bias; none where it is in float.
        affine: Batch normalization that is folded in, if any is.
    """
    layer: str
    source: str
    made: str
    input: str
    output: str
    weight: Tuple[str, str]
    bias: Optional[Tuple[str, str]]
    affine: Optional[Affine]


class Stream(NamedTuple):
    """A map on a grid, and the name of its codes in the graph."""
    codes: str
    grid: Grid


class IntegerGraph(NamedTuple):
    """A graph in 8-bit arithmetic.

    Attributes:
        model: The graph.
        mode: ``'exact'`` or ``'relaxed'``.
        calls: All calls of its layers.
        streams: Maps of the traced graph that have a grid of their own.
    """
    model: onnx.ModelProto
    mode: str
    calls: List[Call]
    streams: Dict[str, Stream]
