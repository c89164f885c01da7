"""Hypothesis strategies for quantizers and their inputs."""
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor


class Case(NamedTuple):
    x: Tensor
    clip: Tensor
    theta: Tensor
    bits: int
    signed: bool


def _tensors(min_value: float, max_value: float, min_size: int,
             max_size: int) -> st.SearchStrategy:
    values = st.floats(min_value, max_value, width=32)
    return st.lists(
        values, min_size=min_size,
        max_size=max_size).map(lambda v: torch.tensor(v).double())


def thetas() -> st.SearchStrategy:
    """Logits of 2 to 20 intervals, whose heights differ up to 400-fold."""
    return _tensors(-3, 3, 2, 20)


@st.composite
def cases(draw) -> Case:
    """A quantizer and up to 50 values within four clips, in float64."""
    clip = draw(st.floats(0.125, 8, width=32))
    x = draw(_tensors(-4, 4, 1, 50)) * clip
    return Case(x, torch.tensor(clip).double(), draw(thetas()),
                draw(st.integers(2, 8)), draw(st.booleans()))
