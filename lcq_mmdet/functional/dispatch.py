"""The quantizer as the layers call it: the fastest kernel there is."""
import warnings
from typing import Callable, Dict, Optional

import torch
from torch import Tensor

from lcq_mmdet.compat import is_exporting

from .reference import check_arguments, lcq_quantize_reference

Kernel = Callable[
    [Tensor, Tensor, Tensor, int, bool, Optional[Tensor], bool], Tensor]
#: Fast implementations by device type; ``lcq_mmdet.kernels`` fills it. They
#: compute in float32, and get neither float64 nor empty tensors.
KERNELS: Dict[str, Kernel] = {}


def lcq_quantize(x: Tensor,
                 clip: Tensor,
                 theta: Tensor,
                 bits: int,
                 signed: bool,
                 offset: Optional[Tensor] = None,
                 normalized: bool = False) -> Tensor:
    """Quantize with the fastest kernel there is for the device of ``x``.

    Graphs that others read, of ``torch.jit.trace``, ``torch.export`` and
    ``torch.onnx.export``, get the operations of the reference.

    Same arguments, result, gradients and errors as
    :func:`~lcq_mmdet.functional.lcq_quantize_reference`.

    Examples:
        >>> lcq_quantize(torch.tensor([0.3, 2.]), torch.tensor(1.),
        ...              torch.zeros(16), bits=2, signed=False)
        tensor([0.3333, 1.0000])
    """
    if torch.jit.is_tracing():
        with warnings.catch_warnings():
            # Of numbers of values that no input changes.
            warnings.simplefilter('ignore', torch.jit.TracerWarning)
            return lcq_quantize_reference(x, clip, theta, bits, signed,
                                          offset, normalized)
    kernel = KERNELS.get(x.device.type, lcq_quantize_reference)
    if is_exporting() or x.dtype == torch.float64 or not x.numel():
        kernel = lcq_quantize_reference
    # The reference does so itself.
    if kernel is not lcq_quantize_reference:
        check_arguments(x, clip, theta, signed, offset)
    return kernel(x, clip, theta, bits, signed, offset, normalized)
