import pytest
import torch
from hypothesis import given, settings
from strategies import cases

from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import (lcq_quantize_reference, lloyd_max_init,
                                  lowest_level, mse_init, num_steps,
                                  quantization_error)

SAMPLES = {
    'gaussian': torch.distributions.Normal(0., 1.),
    'laplace': torch.distributions.Laplace(0., 1.),
}
STEPS = [(3, 3), (4, 7), (5, 15)]


def lloyd_error(magnitudes, s):
    """Run Lloyd's algorithm to convergence, level 0 fixed."""
    values = torch.quantile(magnitudes, torch.linspace(0.2, 0.999, s).double())
    values = torch.cat([torch.zeros(1).double(), values])
    for _ in range(400):
        cell = torch.bucketize(magnitudes, (values[1:] + values[:-1]) / 2)
        count = torch.bincount(cell, minlength=s + 1)
        total = torch.bincount(cell, magnitudes, minlength=s + 1)
        values[1:] = (total / count.clamp(min=1))[1:]
    return ((magnitudes - values[cell])**2).mean()


@pytest.mark.parametrize('name', SAMPLES)
@pytest.mark.parametrize('bits, s', STEPS)
def test_lloyd_max_init_is_close_to_the_optimum(name, bits, s):
    x = SAMPLES[name].sample((10000, ))
    optimum = lloyd_error(x.abs().double(), s)
    error = quantization_error(x, *lloyd_max_init(x, bits, True), bits, True)
    uniform = quantization_error(x, *mse_init(x, bits, True), bits, True)
    assert optimum * 0.999 < error < optimum * 1.02
    assert uniform > error * 1.04


@settings(max_examples=20)
@given(cases())
def test_lloyd_max_init_is_never_worse_than_uniform(case):
    x = torch.cat([case.x, torch.ones(1).double()])
    errors = [
        quantization_error(x, *init(x, case.bits, case.signed), case.bits,
                           case.signed) for init in (lloyd_max_init, mse_init)
    ]
    assert errors[0] <= errors[1] * (1 + 1e-9)


@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('init', [lloyd_max_init, mse_init])
def test_error_is_that_of_the_quantizer(init, signed):
    x = torch.randn(5000)
    clip, theta = init(x, 3, signed)
    target = x if signed else x.relu()
    y = lcq_quantize_reference(x, clip, theta, 3, signed)
    torch.testing.assert_close(
        quantization_error(x, clip, theta, 3, signed),
        ((y - target)**2).mean().double(),
        rtol=1e-4,
        atol=0)


@pytest.mark.parametrize('init', [lloyd_max_init, mse_init])
def test_zeros_cost_nothing(init):
    x = torch.randn(1000).abs()
    with_zeros = torch.cat([x, torch.zeros(3000)])
    assert torch.equal(init(x, 4, False)[0], init(with_zeros, 4, False)[0])


def test_number_of_intervals_is_free():
    clip, theta = lloyd_max_init(torch.randn(1000), 4, True, num_intervals=5)
    assert clip.shape == () and theta.shape == (5, )


def test_fewer_values_than_levels_are_met_exactly():
    x = torch.tensor([0.5, 1., 1.5, 2., 2.5, 3., 3.5])
    clip, theta = lloyd_max_init(x, 4, True)
    assert num_steps(4, True) == len(x)
    torch.testing.assert_close(
        lcq_quantize_reference(x, clip, theta, 4, True), x, rtol=0, atol=0.03)


# J. Max, "Quantizing for minimum distortion", 1960, table I.
@pytest.mark.parametrize('bits, level', [(2, -1.510), (3, -2.152),
                                         (4, -2.733)])
def test_lowest_level_of_a_gaussian_is_known(bits, level):
    x = torch.distributions.Normal(0., 1.).icdf(
        torch.linspace(0, 1, 50002)[1:-1].double())
    found = lowest_level(x, bits, num_iters=1000)
    torch.testing.assert_close(found.item(), level, rtol=0.01, atol=0)
    shifted = lowest_level(x + 7, bits, num_iters=1000)
    assert shifted - found == pytest.approx(7)


@pytest.mark.parametrize('init', [lloyd_max_init, mse_init])
@pytest.mark.parametrize('x, signed, message', [
    (torch.zeros(5), True, 'no non-zero value among 5'),
    (-torch.ones(5), False, 'no positive value among 5'),
    (torch.tensor([1., float('nan')]), True, 'must be finite'),
    (torch.tensor([1., float('inf')]), True, 'must be finite'),
])
def test_unusable_samples_are_named(init, x, signed, message):
    with pytest.raises(LCQError, match=message):
        init(x, 4, signed)
