"""Picking the best candidates of maps, for any batch and image size.

Shape shorthand: N images, A priors at each place of a map, HW places, C
channels of a prior, M = A * HW priors, k picked ones. A map as the head gives
it is (N, A * C, H, W); one by priors is (N, A, C, HW).
"""
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Picked(NamedTuple):
    """What was picked, (N, k) each: values, priors and classes."""
    values: Tensor
    priors: Tensor
    classes: Tensor


def by_priors(values: Tensor, num_priors: int, channels: int) -> Tensor:
    """Bring a map into the shape (N, A, C, HW)."""
    return values.flatten(2).reshape(values.shape[0], num_priors, channels,
                                     -1)


def at_most(limit: int, count: Any) -> Any:
    """Return the smaller number; as a graph, if ``count`` is one."""
    return torch.minimum(torch.as_tensor(count), torch.tensor(limit))


def pick(values: Tensor, limit: int) -> Picked:
    """Pick the pairs of prior and class with the highest values.

    Classes of few priors are looked at: where one of a prior is among the
    best pairs, the prior is among as many priors with the best classes.

    Args:
        values: Any values, shape (N, A, C, HW).
        limit: Number of pairs to pick at most; 0 or less for all.
    """
    num_priors, num_classes = values.shape[1:3]
    best = values.amax(2).transpose(1, 2).flatten(1)
    count = best.shape[1]
    first = at_most(limit, count) if limit > 0 else count
    top, priors = best.topk(first)
    if num_classes == 1:
        return Picked(top, priors, torch.zeros_like(priors))
    pairs = take(values, priors).flatten(1)
    count = pairs.shape[1]
    top, index = pairs.topk(at_most(limit, count) if limit > 0 else count)
    return Picked(
        top,
        priors.gather(1, index // num_classes),
        index % num_classes)


def take(values: Tensor, priors: Tensor) -> Tensor:
    """Take the channels of some priors, which count along A first.

    Args:
        values: Shape (N, A, C, HW).
        priors: Shape (N, k).

    Returns:
        Shape (N, k, C).
    """
    num_priors, channels, places = values.shape[1:]
    start = (priors % num_priors) * (channels * places) + priors // num_priors
    offsets = torch.arange(channels, device=priors.device) * places
    index = start.unsqueeze(-1) + offsets
    taken = values.flatten(1).gather(1, index.flatten(1))
    return taken.reshape(values.shape[0], -1, channels)


def clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Clip boxes, (..., 4), to an image of the size ``limits``, (4)."""
    return torch.minimum(boxes.clamp(min=0), limits)
