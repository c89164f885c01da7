"""Quantize a weight once for all calls of its layer."""
import weakref
from typing import Any, Optional, Tuple

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
        parameters = [weight, *quantizer.parameters()]
        key = (with_grad, quantizer.bypass,
               *((t.data_ptr(), t._version, t.requires_grad)
                 for t in (*parameters, *quantizer.buffers())))
        if self._state is not None and self._state[0] == key:
            return self._state[1]
        if not with_grad:
            self._state = key, quantizer(weight)
            return self._state[1]
        value = _Shared.apply(self, quantizer, *parameters)
        # Without a backward pass nothing tells of changes through .data.
        self._state = (key, value) if value.requires_grad else None
        return value

    def __reduce__(self) -> Tuple[type, tuple]:
        return KeptWeight, ()


class _Shared(torch.autograd.Function):
    """Quantize with a graph that any number of backward passes goes through.

    An ordinary one is freed by the first of them, as where two batches pass
    forward before any of them passes backward. This one is then made again.
    """

    @staticmethod
    def forward(ctx: Any, kept: KeptWeight, quantizer: LCQQuantizer,
                weight: Tensor, *parameters: Tensor) -> Tensor:
        leaf = weight.detach().requires_grad_(weight.requires_grad)
        ctx.kept, ctx.quantizer = weakref.ref(kept), quantizer
        ctx.inputs = leaf, *parameters
        ctx.versions = [t._version for t in ctx.inputs]
        # Hooks such as gradient checkpointing's see nothing of this: a call
        # that shares the result saves nothing. Detached, as an operation that
        # saves what it gives would otherwise hold itself.
        with torch.enable_grad(), saved_tensors_hooks(torch.detach, _same):
            ctx.value = quantizer(leaf)
        return ctx.value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        kept = ctx.kept()
        if kept is not None:
            kept.forget()
        # Hooks take over torch's own check.
        if ctx.versions != [t._version for t in ctx.inputs]:
            raise RuntimeError(
                'a weight or a parameter of its quantizer has been modified '
                'by an inplace operation between forward and backward')
        value, ctx.value = ctx.value, None
        if value is None:
            with torch.enable_grad():
                value = ctx.quantizer(ctx.inputs[0])
        wanted = [t for t in ctx.inputs if t.requires_grad]
        grads = iter(torch.autograd.grad(value, wanted, grad,
                                         allow_unused=True))
        return (None, None, *(
            next(grads) if t.requires_grad else None for t in ctx.inputs))


def _same(x: Tensor) -> Tensor:
    return x
