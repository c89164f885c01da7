"""What stays in float32 where a model is cast to half precision."""
from typing import Callable

import torch
from torch import Tensor

from lcq_mmdet.functional import is_half


def not_halved(fn: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Apply what moves and casts a tensor, and take float32 for a half type.

    Args:
        fn: What ``nn.Module.to`` and its like do to each tensor.
        value: A parameter, a buffer or a gradient.
    """
    changed = fn(value)
    if not is_half(changed):
        return changed
    # On its device and in its memory format.
    return torch.empty_like(changed, dtype=torch.float32).copy_(value)
