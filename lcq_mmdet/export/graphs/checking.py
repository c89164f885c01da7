"""Whether 8-bit layers compute what they should."""
from typing import Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.layers import LCQLinear

from .builder import with_outputs
from .folding import Affine
from .network import DetectorNetwork
from .session import Graph
from .trace import Layer

_TOLERANCE = 1e-4


class Call(NamedTuple):
    """A call of a layer, with the names of its input and output.

    ``steps`` are those of weight and bias, shape (out) each.
    """
    layer: str
    input: str
    output: str
    affine: Optional[Affine]
    steps: Tuple[np.ndarray, np.ndarray]


@torch.no_grad()
def check_calls(calls: Sequence[Call], written: onnx.ModelProto,
                network: DetectorNetwork, layers: Mapping[str, Layer]) -> None:
    """Compare what each layer makes of its 8-bit input with torch.

    Raises:
        LCQError: If they differ by more than rounding a weight to 8 bits
            can make; names the layer.
    """
    names = {name for call in calls for name in call[1:3]}
    graph = Graph(*with_outputs(written, sorted(names)), fused=False)
    inputs = network.example(*network.size[::-1])
    found = dict(zip(graph.outputs, graph(*inputs)))
    for name, x, y, affine, steps in calls:
        layer = layers[name]
        expected = _forward(layer, found[x], layer.quantized_weight(),
                            layer.bias)
        if affine is not None:
            scale, shift = (_by_channel(layer, part) for part in affine)
            expected = expected * scale + shift
        # Each code is off by half a step at most.
        of_weight, of_bias = (_by_channel(layer, step) for step in steps)
        ones = torch.ones_like(layer.weight)
        room = (_forward(layer, found[x].abs(), ones) * of_weight +
                of_bias) / 2
        difference = (found[y] - expected).abs()
        if not (difference <= room + _TOLERANCE *
                expected.abs().max()).all():
            raise LCQError(f'{name}: differs by {difference.max()} '
                           'between onnxruntime and torch')


def _forward(layer: Layer, x: Tensor, weight: Tensor,
             bias: Optional[Tensor] = None) -> Tensor:
    if isinstance(layer, LCQLinear):
        return F.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


def _by_channel(layer: Layer, values: np.ndarray) -> Tensor:
    """Give values of output channels the shape that fits an output."""
    return torch.from_numpy(values).float().view(
        -1, *[1] * (layer.weight.dim() - 2))
