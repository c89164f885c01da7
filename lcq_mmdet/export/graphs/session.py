"""Graphs that are called with tensors."""
from typing import Sequence, Tuple

import numpy as np
import onnx
import onnx.utils
import torch
from torch import Tensor

from lcq_mmdet.errors import LCQError

from ..engines import ENGINES
from .starting import ENGINE_ERRORS, start


class Graph:
    """Call a graph with tensors.

    Args:
        model: An ONNX model of ``export_onnx``.
        inputs: Names of the inputs that are given.
        outputs: Names of what is wanted of what follows from them.
        fused: Whether 8-bit operators may be computed in integers; else each
            is computed in float, as it is written; onnxruntime only.
        engine: ``'onnxruntime'`` or ``'openvino'``.

    Raises:
        LCQError: If the engine is not installed or does not take the graph.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Sequence[str],
                 outputs: Sequence[str],
                 fused: bool = True,
                 engine: str = ENGINES[0]) -> None:
        self.inputs, self.outputs = list(inputs), list(outputs)
        # onnxruntime has no way to leave out what is not wanted.
        part = onnx.utils.Extractor(model).extract_model(
            self.inputs, self.outputs)
        self._engine = engine
        self._run = start(engine, part, self.outputs, fused)

    def __call__(self, *inputs: Tensor) -> Tuple[Tensor, ...]:
        """Compute the outputs, on the device of the inputs.

        Raises:
            LCQError: If the graph cannot take such inputs.
        """
        feeds = (_array(value) for value in inputs)
        try:
            found = self._run(dict(zip(self.inputs, feeds)))
        except (*ENGINE_ERRORS, RuntimeError) as error:
            sizes = ', '.join(str(tuple(value.shape)) for value in inputs)
            raise LCQError(f'{self._engine} cannot run it with inputs of '
                           f'shape {sizes}: {error}') from None
        return tuple(
            torch.from_numpy(value).to(inputs[0].device) for value in found)


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()
