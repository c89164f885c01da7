"""Quantized tensors that are not kept for the backward pass, but made again.

What multiplies an input by a weight saves both for the backward pass. A
float layer saves what the activation before it keeps anyway, and a
parameter; a quantized layer would save the quantized values as well.
"""
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lcq_mmdet.compat import is_compiling

#: Below, there is less memory to be gained than time to be lost.
MIN_SIZE = 2**16


def saving_nothing_of(
        *tensors: Tensor,
        but: Optional[Tensor] = None) -> AbstractContextManager:
    """Let operations inside save how to make tensors again in place of them.

    Args:
        *tensors: Any tensors. Those of 65,536 values and more are made again
            if their ``grad_fn`` has a function ``again`` that does so from
            itself, as those of the fused kernels have; others are saved as
            they are.
        but: One of them that is saved as it is. Gradient checkpointing sees
            as much of the operations with it as without.
    """
    # torch.compile decides by itself what to make again.
    if is_compiling():
        return nullcontext()
    nodes = {
        y.data_ptr(): None if y is but else y.grad_fn
        for y in tensors
        if y.numel() >= MIN_SIZE and hasattr(y.grad_fn, 'again')
    }
    if not nodes:
        return nullcontext()

    def pack(saved: Tensor) -> Any:
        node = nodes.get(saved.data_ptr())
        if node is None:
            # An operation that saves what it gives would hold itself.
            return saved.detach()
        return node, saved.size(), saved.stride()

    return saved_tensors_hooks(pack, _unpack)


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    node, size, stride = packed
    # Views of a tensor, too: what is made again is as dense as it was.
    with torch.no_grad():
        return node.again(node).as_strided(size, stride)


def save_input(ctx: Any, x: Tensor) -> None:
    """Save the input of a node.

    A leaf that learns, such as a weight, is kept as it is, and any number of
    backward passes may go through the node: there is no graph before it to be
    freed.
    """
    if x.is_leaf and x.requires_grad:
        ctx.leaf, ctx.version = x, x._version
    else:
        ctx.save_for_backward(x)


def open_saved(ctx: Any) -> Tuple[Tensor, ...]:
    """Return what a node saved, for ``again``; its backward pass follows.

    Gradient checkpointing lets it be opened but once.
    """
    ctx.opened = _saved(ctx)
    return ctx.opened


def close_saved(ctx: Any) -> Tuple[Tensor, ...]:
    """Return what a node saved, for its backward pass."""
    opened, ctx.opened = getattr(ctx, 'opened', None), None
    return _saved(ctx) if opened is None else opened


def _saved(ctx: Any) -> Tuple[Tensor, ...]:
    leaf: Optional[Tensor] = getattr(ctx, 'leaf', None)
    if leaf is None:
        return ctx.saved_tensors
    if leaf._version != ctx.version:
        raise RuntimeError('a tensor that was quantized has been modified by '
                           'an inplace operation between forward and backward')
    return leaf,
