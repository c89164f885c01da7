"""The range of 8 bits for maps that have no learned clip."""
from itertools import product
from typing import Dict, Iterable, List, Mapping, Tuple

import onnx
import torch
from torch import Tensor

from lcq_mmdet.functional import with_extremes

from .builder import with_outputs
from .grid import Grid
from .network import DetectorNetwork
from .session import Graph

Ranges = Mapping[str, Tuple[float, float]]
_SAMPLES_A_BATCH = 2**13
# Candidates for either end, in shares of the one that was seen.
_SHARES = (1., 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def measure_ranges(graph: onnx.ModelProto, names: List[str],
                   network: DetectorNetwork,
                   images: Iterable[Tensor]) -> Ranges:
    """Find the ranges with the least squared error over some images.

    A few large values would make the steps of all others wide, so they may
    be clipped.

    Args:
        graph: The graph in float arithmetic.
        names: Names of maps in it.
        network: The network, for what inputs it has beside the image.
        images: Batches of preprocessed images, one or more.

    Returns:
        Lower and upper end by name, with 0 between them.
    """
    run = Graph(*with_outputs(graph, names))
    samples: Dict[str, List[Tensor]] = {name: [] for name in names}
    for image in images:
        inputs = image, *network.pool(image)
        found = dict(zip(run.inputs + run.outputs, inputs + run(*inputs)))
        for name in names:
            samples[name].append(
                with_extremes(found[name].flatten(), _SAMPLES_A_BATCH))
    return {name: best_range(torch.cat(samples[name])) for name in names}


def best_range(values: Tensor) -> Tuple[float, float]:
    """Choose the range in which 8 bits have the least squared error.

    Args:
        values: Samples, shape (N), with the least and the largest value.

    Returns:
        Lower and upper end, 0.3 to 1 times those of the samples and 0.
    """
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    best, chosen = float('inf'), (low, high)
    for one, other in product(_SHARES if low < 0 else (1., ),
                              _SHARES if high > 0 else (1., )):
        ends = low * one, high * other
        rounded = Grid.between(*ends).round(values)
        error = float((rounded - values).square().mean())
        if error < best:
            best, chosen = error, ends
    return float(chosen[0]), float(chosen[1])
