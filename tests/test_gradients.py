import torch
from hypothesis import given
from strategies import cases

from lcq_mmdet import LCQConv2d, QuantizerConfig
from lcq_mmdet.functional import (compress, expand, input_slope, num_steps,
                                  scale_gradient)


@given(cases())
def test_slopes_are_those_of_the_chain_rule(case):
    s = num_steps(case.bits, case.signed)
    v = (case.x.abs() if case.signed else case.x.relu()) / case.clip
    inside = v < 1
    v.requires_grad_()
    u = compress(v.clamp(max=1), case.theta)
    u = u + ((u * s).round() / s - u).detach()
    wanted, = torch.autograd.grad(expand(u, case.theta).sum(), v)
    slopes = input_slope(case.x, case.clip, case.theta, case.bits,
                         case.signed)
    torch.testing.assert_close(slopes[inside], wanted[inside])
    assert (slopes > 0).all()


def test_scaling_changes_the_gradient_only():
    x = torch.randn(7, requires_grad=True)
    factor = torch.rand(7)
    y = scale_gradient(x, factor)
    assert torch.equal(y, x)
    y.backward(torch.full((7, ), 3.))
    assert torch.equal(x.grad, 3 * factor)


def gradients(**options):
    """Gradients of a convolution's parameters and of its signed input."""
    torch.manual_seed(0)
    layer = LCQConv2d(4, 8, 3, config=QuantizerConfig(**options))
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    layer.act_quantizer.initialize_(x, signed=True)
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    y = layer(x)
    y.square().sum().backward()
    return y, dict(layer.named_parameters(), x=x)


def test_slopes_change_the_gradient_of_what_is_quantized_only():
    y, plain = gradients(weight_bits=2)
    sloped_y, sloped = gradients(weight_bits=2, input_gradient='slopes')
    assert torch.equal(y, sloped_y)
    for name, parameter in plain.items():
        same = name not in ('weight', 'x')
        assert torch.equal(sloped[name].grad, parameter.grad) == same, name
