"""Recompute quantized tensors in the backward pass instead of saving them.

What multiplies an input by a weight saves both for the backward pass. A
float layer saves what the activation before it saves anyway, and a
parameter; a quantized layer would save the quantized values as well.
"""
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Iterator, Tuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lcq_mmdet.compat import is_compiling

#: Below, there is less memory to be gained than time to be lost.
MIN_SIZE: float = 2**16


@contextmanager
def disabled() -> Iterator[None]:
    """Save quantized tensors of any size inside, for comparison."""
    global MIN_SIZE
    size, MIN_SIZE = MIN_SIZE, float('inf')
    try:
        yield
    finally:
        MIN_SIZE = size


def recomputing(*tensors: Tensor) -> AbstractContextManager:
    """Let operations inside save how to recompute tensors, and not these.

    Args:
        *tensors: Any tensors. Those of 65,536 values and more are recomputed
            if their ``grad_fn`` has a function ``recompute`` that does so
            from itself, as those of the fused kernels have; others are saved.
    """
    # torch.compile decides by itself what to recompute.
    if is_compiling():
        return nullcontext()
    nodes = {
        y.data_ptr(): y.grad_fn
        for y in tensors
        if hasattr(y.grad_fn, 'recompute') and y.numel() >= MIN_SIZE
    }
    if not nodes:
        return nullcontext()

    def pack(saved: Tensor) -> Any:
        node = nodes.get(saved.data_ptr())
        if node is None:
            # An operation that saves its own output would hold itself.
            return saved.detach()
        return node, saved.size(), saved.stride()

    return saved_tensors_hooks(pack, _unpack)


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    node, size, stride = packed
    # Views of a tensor, too: a recomputed tensor is as dense as the first.
    with torch.no_grad():
        return node.recompute(node).as_strided(size, stride)


def open_saved(ctx: Any) -> Tuple[Tensor, ...]:
    """Return what a node saved, to recompute; its backward pass follows.

    Gradient checkpointing lets it be opened but once.
    """
    ctx.opened = ctx.saved_tensors
    return ctx.opened


def close_saved(ctx: Any) -> Tuple[Tensor, ...]:
    """Return what a node saved, for its backward pass."""
    opened, ctx.opened = getattr(ctx, 'opened', None), None
    return ctx.saved_tensors if opened is None else opened
