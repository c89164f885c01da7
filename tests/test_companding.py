import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import lcq
from strategies import cases, thetas

from lcq_mmdet import functional
from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import (compress, expand, lcq_quantize_reference,
                                  levels, num_steps)


@given(thetas(), st.lists(st.floats(0, 1), min_size=1))
def test_expand_inverts_compress(theta, v):
    v = torch.tensor(v).double()
    u = compress(v, theta)
    assert ((u >= 0) & (u <= 1 + 1e-12)).all()
    torch.testing.assert_close(expand(u, theta), v, rtol=0, atol=1e-9)


@given(thetas())
def test_compress_rises_from_zero_to_one(theta):
    u = compress(torch.linspace(0, 1, 201).double(), theta)
    assert u[0] == 0
    assert math.isclose(u[-1], 1, abs_tol=1e-12)
    assert (u.diff() > 0).all()


@given(thetas(), st.integers(2, 8), st.booleans())
def test_levels_rise_from_zero_to_one(theta, bits, signed):
    values = levels(theta, bits, signed)
    assert len(values) == num_steps(bits, signed) + 1
    assert values[0] == 0 and values[-1] == 1
    assert (values.diff() > 0).all()


@given(cases())
def test_output_is_among_the_levels(case):
    y = lcq_quantize_reference(*case)
    values = case.clip * levels(case.theta, case.bits, case.signed)
    if case.signed:
        values = torch.cat([-values, values])
    assert torch.isin(y, values).all()


@given(cases())
def test_quantizing_twice_changes_nothing(case):
    y = lcq_quantize_reference(*case)
    again = lcq_quantize_reference(y, *case[1:])
    torch.testing.assert_close(again, y, rtol=1e-9, atol=0)


@given(cases())
def test_larger_input_never_gives_smaller_output(case):
    y = lcq_quantize_reference(case.x.sort().values, *case[1:])
    assert (y.diff() >= 0).all()


@given(cases())
def test_signed_quantizer_is_odd(case):
    case = case._replace(signed=True)
    y = lcq_quantize_reference(*case)
    assert torch.equal(lcq_quantize_reference(-case.x, *case[1:]), -y)


@given(cases())
def test_output_is_bounded_by_clip_and_sign(case):
    y = lcq_quantize_reference(*case)
    assert (y.abs() <= case.clip).all()
    if not case.signed:
        assert (y[case.x <= 0] == 0).all()


@given(cases())
def test_theta_of_zero_is_the_uniform_quantizer(case):
    s = num_steps(case.bits, case.signed)
    x = case.x if case.signed else case.x.clamp(min=0)
    step = case.clip / s
    expected = (x.clamp(-case.clip, case.clip) / step).round() * step
    y = lcq_quantize_reference(case.x, case.clip, torch.zeros(16).double(),
                               case.bits, case.signed)
    # A tie may fall either way.
    tie = ((x / step) % 1 - 0.5).abs() < 1e-6
    torch.testing.assert_close(
        y[~tie], expected[~tie], rtol=1e-9, atol=1e-12)


@given(cases())
def test_value_and_every_gradient_equal_the_oracle(case):
    x, clip, theta = (t.clone().requires_grad_() for t in case[:3])
    y = lcq_quantize_reference(x, clip, theta, case.bits, case.signed)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected = lcq(case.x.tolist(), dy.tolist(), clip.item(), theta.tolist(),
                   case.bits, case.signed)
    # x = 0 lies on the kink of |x|; its gradient is the straight-through one.
    for label, value, wanted in zip(expected._fields,
                                    (y, x.grad, clip.grad, theta.grad),
                                    expected):
        torch.testing.assert_close(
            value,
            torch.tensor(wanted).double(),
            rtol=1e-6,
            atol=1e-8 * (1 + clip.item()),
            msg=lambda text, label=label: f'{label}: {text}')


@pytest.mark.parametrize('signed', [True, False])
def test_theta_gradient_equals_finite_differences_of_the_surrogate(signed):
    """Of f^-1(f(v) + c), in which c is the constant rounding error.

    The top level is left out: expand stays at 1 beyond it.
    """
    bits, clip = 3, torch.tensor(1.3).double()
    s = num_steps(bits, signed)
    x = torch.randn(500).double()
    theta = torch.randn(16).double().requires_grad_()
    v = (x.abs() if signed else x.relu()) / clip
    u = compress(v.clamp(max=1), theta).detach()
    below_top = (v < 1) & ((u * s).round() < s)
    x, v, u = x[below_top], v[below_top], u[below_top]
    assert len(x) > 200

    dy = torch.randn(len(x)).double()
    lcq_quantize_reference(x, clip, theta, bits, signed).backward(dy)

    def surrogate(theta):
        codes = compress(v, theta) + ((u * s).round() / s - u)
        return (dy * x.sign() * clip * expand(codes, theta)).sum()

    step = 1e-6
    for k in range(16):
        shift = torch.zeros(16).double()
        shift[k] = step
        with torch.no_grad():
            slope = (surrogate(theta + shift) -
                     surrogate(theta - shift)) / (2 * step)
        assert math.isclose(theta.grad[k], slope, rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize('signed', [True, False])
def test_nan_and_infinity_pass_as_clamp_lets_them(signed):
    x = torch.tensor([float('nan'), float('inf'), float('-inf')])
    y = lcq_quantize_reference(x, torch.tensor(2.), torch.zeros(16), 4, signed)
    assert y[0].isnan()
    assert y[1:].tolist() == [2., -2. if signed else 0.]


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_dtype_is_kept(dtype):
    x = torch.randn(9, dtype=dtype)
    clip, theta = torch.tensor(1., dtype=dtype), torch.zeros(16, dtype=dtype)
    assert lcq_quantize_reference(x, clip, theta, 4, True).dtype == dtype


@pytest.mark.parametrize('bits', [1, 9, 4., '4', True, None])
def test_bits_out_of_range_are_named(bits):
    with pytest.raises(LCQError, match=r'bits=.*integer from 2 to 8'):
        functional.lcq_quantize(
            torch.ones(1), torch.tensor(1.), torch.zeros(16), bits, True)
