"""Quantize a weight once for all calls of its layer."""
import weakref
from typing import Any, Iterable, List, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from lcq_mmdet.quantizer import LCQQuantizer


class KeptWeight:
    """The last quantized weight of one layer; copies start without it."""

    def __init__(self) -> None:
        self._state: Optional[Tuple[tuple, Tensor]] = None

    def forget(self) -> None:
        """Quantize anew next time."""
        self._state = None

    def get(self, quantizer: LCQQuantizer, weight: Tensor,
            training: bool) -> Tensor:
        """Quantize a weight, or return what was kept of it.

        With gradients, calls share one result until a backward pass reaches
        it or a parameter changes in place. More backward passes may follow,
        of calls before. In eval mode without gradients it is kept until a
        parameter changes.

        Args:
            quantizer: The weight's quantizer.
            weight: The weight as it is, any shape.
            training: Whether the layer is in training mode.
        """
        with_grad = torch.is_grad_enabled()
        if (training and not with_grad) or torch.compiler.is_compiling():
            return quantizer(weight)
        # Not through the module's iterators, which take longer than the rest.
        parameters = [weight, *quantizer._parameters.values()]
        key = (with_grad, quantizer.bypass,
               *((t.data_ptr(), t._version, t.requires_grad)
                 for t in (*parameters, *quantizer._buffers.values())
                 if t is not None))
        if self._state is not None and self._state[0] == key:
            return self._state[1]
        # Hooks such as gradient checkpointing's see nothing of this: a call
        # that shares the result saves nothing. Detached, as an operation that
        # saves what it gives would otherwise hold itself.
        with saved_tensors_hooks(torch.detach, _same):
            value = quantizer(weight)
        # Without a backward pass nothing tells of changes through .data.
        self._state = None
        if with_grad and value.requires_grad:
            if getattr(value.grad_fn, 'leaf', None) is not weight:
                value = _Shared.apply(quantizer, (value, ), *parameters)
            value.register_hook(_Forget(self))
        if value.requires_grad or not with_grad:
            self._state = key, value
        return value

    def __reduce__(self) -> Tuple[type, tuple]:
        return KeptWeight, ()


class _Forget:
    """Hook of a quantized weight that does not hold what holds it."""

    def __init__(self, kept: KeptWeight) -> None:
        self._kept = weakref.ref(kept)

    def __call__(self, grad: Tensor) -> None:
        kept = self._kept()
        if kept is not None:
            kept.forget()


class _Shared(torch.autograd.Function):
    """Give a result a graph that any number of backward passes goes through.

    An ordinary one is freed by the first of them, as where two batches pass
    forward before any of them passes backward. This one is then made again.
    """

    @staticmethod
    def forward(ctx: Any, quantizer: LCQQuantizer, value: Tuple[Tensor],
                *inputs: Optional[Tensor]) -> Tensor:
        ctx.quantizer, ctx.value, ctx.inputs = quantizer, value[0], inputs
        ctx.versions = _versions(inputs)
        return value[0].detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        # Hooks take over torch's own check.
        if ctx.versions != _versions(ctx.inputs):
            raise RuntimeError(
                'a weight or a parameter of its quantizer has been modified '
                'by an inplace operation between forward and backward')
        value, ctx.value = ctx.value, None
        if value is None:
            with torch.enable_grad():
                value = ctx.quantizer(ctx.inputs[0])
        wanted = [t for t in ctx.inputs if t is not None and t.requires_grad]
        grads = iter(
            torch.autograd.grad(value, wanted, grad, allow_unused=True))
        return (None, None, *(None if t is None or not t.requires_grad else
                              next(grads) for t in ctx.inputs))


def _versions(tensors: Iterable[Optional[Tensor]]) -> List[int]:
    return [t._version for t in tensors if t is not None]


def _same(x: Tensor) -> Tensor:
    return x
