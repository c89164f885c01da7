"""The CPU kernel against the reference, every gradient under its label."""
import subprocess
import sys

import pytest
import torch

from lcq_mmdet.functional import (KERNELS, lcq_quantize,
                                  lcq_quantize_reference, levels)
from lcq_mmdet.kernels.cpu import lcq_quantize_cpu

QUANTIZERS = [(bits, signed) for bits in (2, 3, 4, 8)
              for signed in (True, False)]


def run(function, x, clip, theta, dy, bits, signed):
    x, clip, theta = (t.detach().clone().requires_grad_()
                      for t in (x, clip, theta))
    y = function(x, clip, theta, bits, signed)
    y.backward(dy.to(y.dtype))
    return dict(y=y.detach(), x=x.grad, clip=clip.grad, theta=theta.grad)


def assert_same(x, clip, theta, bits, signed, dy=None):
    """Values and dx bit by bit; sums within float32 of the exact ones."""
    dy = torch.randn(x.shape) if dy is None else dy
    ours = run(lcq_quantize_cpu, x, clip, theta, dy, bits, signed)
    same = run(lcq_quantize_reference, x, clip, theta, dy, bits, signed)
    for label in ('y', 'x'):
        assert torch.equal(ours[label].nan_to_num(),
                           same[label].nan_to_num()), label
        assert torch.equal(ours[label].isnan(), same[label].isnan()), label
    size = dy[x.isfinite()].abs().sum().item() * clip.item()
    for label in ('clip', 'theta'):
        error = (ours[label] - same[label]).abs().max().item()
        assert error <= 2e-5 * (1 + size), (label, error)


@pytest.mark.parametrize('bits, signed', QUANTIZERS)
@pytest.mark.parametrize('size', [1, 7, 1023, 4099, 70001])
def test_kernel_equals_reference(size, bits, signed):
    assert_same(
        torch.randn(size), torch.tensor(1.7), torch.randn(16) * 0.5, bits,
        signed)


@pytest.mark.parametrize('bits, signed', QUANTIZERS)
@pytest.mark.parametrize('num_intervals', [2, 7, 16, 33])
def test_values_on_knots_thresholds_levels_and_clip(num_intervals, bits,
                                                    signed):
    clip, theta = torch.tensor(1.5), torch.randn(num_intervals)
    values = clip * torch.cat([
        torch.arange(num_intervals + 1) / num_intervals,
        levels(theta, bits, signed),
        torch.tensor([1., 1 + 2e-7, 1e-45, 2., 1e30])
    ])
    x = torch.cat([values, -values, values.nextafter(torch.tensor(9.))])
    ours = lcq_quantize_cpu(x, clip, theta, bits, signed)
    same = lcq_quantize_reference(x, clip, theta, bits, signed)
    assert torch.equal(ours, same)


@pytest.mark.parametrize('signed', [True, False])
def test_nan_and_infinity(signed):
    x = torch.tensor([float('nan'), float('inf'), float('-inf'), 0., -0., 1.])
    assert_same(x, torch.tensor(2.), torch.randn(16), 4, signed)


@pytest.mark.parametrize('view', [
    lambda x: x.to(memory_format=torch.channels_last),
    lambda x: x.transpose(1, 3),
    lambda x: x[:, ::2],
    lambda x: x[:1].expand(3, -1, -1, -1),
], ids=['channels_last', 'transposed', 'strided', 'expanded'])
@pytest.mark.parametrize('view_of_dy', [lambda g: g, lambda g: g.flip(0)])
def test_memory_formats(view, view_of_dy):
    x = view(torch.randn(2, 6, 5, 4))
    dy = view_of_dy(torch.randn(x.shape))
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    clip, theta = torch.tensor(1.), torch.randn(16)
    y = lcq_quantize_cpu(x, clip, theta, 4, True)
    assert torch.equal(y, lcq_quantize_reference(x, clip, theta, 4, True))
    lcq_quantize_cpu(leaf, clip, theta, 4, True).backward(dy)
    assert torch.equal(leaf.grad, torch.where(x.abs() < 1, dy, 0.))


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype):
    x = torch.randn(1000).to(dtype)
    clip, theta = torch.tensor(1.7), torch.randn(16)
    y = lcq_quantize_cpu(x, clip, theta, 4, True)
    assert y.dtype == dtype
    expected = lcq_quantize_reference(x.float(), clip, theta, 4, True)
    assert torch.equal(y, expected.to(dtype))


def test_empty_input():
    y = lcq_quantize(torch.ones(0, 3), torch.tensor(1.), torch.zeros(16), 4,
                     True)
    assert y.shape == (0, 3)


def test_result_does_not_depend_on_the_number_of_threads():
    x, dy = torch.randn(100003), torch.randn(100003)
    arguments = (lcq_quantize_cpu, x, torch.tensor(1.), torch.randn(16), dy, 4,
                 True)
    threads = torch.get_num_threads()
    many = run(*arguments)
    try:
        torch.set_num_threads(1)
        one = run(*arguments)
    finally:
        torch.set_num_threads(threads)
    for label, value in one.items():
        assert torch.equal(value, many[label]), label


def test_gradient_checkpointing():
    x = torch.randn(100, requires_grad=True)
    clip, theta = torch.tensor(1., requires_grad=True), torch.zeros(16)
    y = torch.utils.checkpoint.checkpoint(
        lcq_quantize_cpu, x, clip, theta, 4, True, use_reentrant=False)
    y.sum().backward()
    assert clip.grad is not None and x.grad is not None


def test_cpu_kernel_is_registered():
    assert KERNELS['cpu'] is lcq_quantize_cpu


@pytest.mark.parametrize('choice, expected', [('reference', '{}'),
                                              ('numba', 'LCQ_KERNELS')])
def test_environment_chooses(choice, expected, monkeypatch):
    monkeypatch.setenv('LCQ_KERNELS', choice)
    code = 'import lcq_mmdet.kernels as k; print(k.KERNELS)'
    result = subprocess.run([sys.executable, '-c', code],
                            capture_output=True,
                            text=True)
    assert expected in result.stdout + result.stderr
