"""Ranges of 8 bits for maps that have no learned clip."""
import pytest
import torch

from lcq_mmdet.export.graphs.ranges import best_range
from lcq_mmdet.functional import round_to_grid, unsigned_grid


def error_of(values, low, high):
    step, zero_point = unsigned_grid(
        torch.tensor(low), torch.tensor(high), bits=8)
    rounded = round_to_grid(values, step, -zero_point, 255 - zero_point)
    return (rounded - values).square().mean()


def test_even_values_keep_their_range():
    values = torch.linspace(-1, 3, 1001)
    assert best_range(values) == pytest.approx((-1, 3))


def test_a_few_large_values_are_clipped():
    values = torch.cat([torch.rand(2**17) * 2 - 1, torch.tensor([-1., 4.])])
    low, high = best_range(values)
    assert low < -0.5 and 1 <= high < 4
    assert error_of(values, low, high) < error_of(values, -1., 4.)


@pytest.mark.parametrize('values', [[0., 0.], [2., 5.], [-5., -2.]])
def test_zero_is_in_the_range(values):
    low, high = best_range(torch.tensor(values))
    assert min(0., *values) <= low <= 0 <= high <= max(0., *values)
