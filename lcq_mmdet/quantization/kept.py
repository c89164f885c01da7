"""Quantize a weight once for all calls of its layer."""
import weakref
from typing import Any, Iterable, List, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from lcq_mmdet.compat import is_compiling

from .quantizer import LCQQuantizer


class KeptWeight:
    """The last quantized weight of one layer; copies start without it.

    Attributes:
        held: The quantized weight if it is held here, for more calls.
    """

    def __init__(self) -> None:
        self.held: Optional[Tensor] = None
        self._state: Optional[Tuple[tuple, weakref.ref]] = None
        self._is_shared, self._is_direct = False, True

    def forget(self) -> None:
        """Quantize anew next time."""
        self.held = self._state = None

    def get(self, quantizer: LCQQuantizer, weight: Tensor,
            training: bool) -> Tensor:
        """Quantize a weight, or return what was kept of it.

        With gradients, calls share one result until a backward pass reaches
        it or a parameter changes in place. More backward passes may follow,
        of calls before; they have the gradient of the values then quantized.
        Only of a layer that was called a second time is it held for more
        calls; else it lives as long as something uses it. In eval mode
        without gradients it is held until a parameter changes.

        Args:
            quantizer: The weight's quantizer.
            weight: The weight as it is, any shape.
            training: Whether the layer is in training mode.
        """
        with_grad = torch.is_grad_enabled()
        if (training and not with_grad) or is_compiling():
            return quantizer(weight)
        # Not through the module's iterators, which take longer than the rest.
        parameters = quantizer._parameters.values()
        key = (with_grad, quantizer.bypass,
               *((t.data_ptr(), t._version, t.requires_grad)
                 for t in (weight, *parameters, *quantizer._buffers.values())
                 if t is not None))
        if self._state is not None and self._state[0] == key:
            self._is_shared |= with_grad
            kept = self._state[1]()
            if kept is not None:
                return kept
        self.forget()
        if not with_grad:
            value = quantizer(weight)
        else:
            value = self._with_graph(quantizer, weight, *parameters)
            # Without a backward pass nothing tells of changes through .data.
            if not value.requires_grad:
                return value
            value.register_hook(_Forget(self))
        self._state = key, weakref.ref(value)
        if self._is_shared or not with_grad:
            self.held = value
        return value

    def _with_graph(self, quantizer: LCQQuantizer, weight: Tensor,
                    *parameters: Optional[Tensor]) -> Tensor:
        """Quantize such that no backward pass frees what others need."""
        # Hooks such as gradient checkpointing's see nothing of this: a call
        # that shares the result saves nothing. Detached, as an operation that
        # saves what it gives would otherwise hold itself.
        with saved_tensors_hooks(torch.detach, _same):
            if self._is_direct:
                value = quantizer(weight)
                if _is_of_leaf(value, weight):
                    return value
                # For all calls from now on: gradient checkpointing compares.
                self._is_direct = False
            # The weight's own hooks see its gradient but once.
            leaf = weight.detach().requires_grad_(weight.requires_grad)
            value = quantizer(leaf)
        return _Shared.apply(quantizer, (value, leaf), weight, *parameters)

    def __reduce__(self) -> Tuple[type, tuple]:
        return KeptWeight, ()


def _is_of_leaf(value: Tensor, weight: Tensor) -> bool:
    """Check that the graph of ``value`` is one node that nothing frees."""
    return getattr(value.grad_fn, 'leaf', None) is weight


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
    def forward(ctx: Any, quantizer: LCQQuantizer,
                inner: Tuple[Tensor, Tensor], weight: Tensor,
                *parameters: Optional[Tensor]) -> Tensor:
        ctx.quantizer, (ctx.value, leaf) = quantizer, inner
        ctx.inputs = leaf, *parameters
        ctx.versions = _versions(ctx.inputs)
        return ctx.value.detach()

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
