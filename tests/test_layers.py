import copy

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from torch import nn

from lcq_mmdet import LCQConv2d, QuantizerConfig
from lcq_mmdet.functional import lcq_quantize_reference

GEOMETRIES = {
    'plain': dict(kernel_size=3),
    'stride': dict(kernel_size=3, stride=2, padding=1),
    'groups': dict(kernel_size=3, groups=2, padding=1),
    'depthwise': dict(kernel_size=3, groups=4, padding=1),
    'dilation': dict(kernel_size=3, dilation=2, padding=2),
    'no_bias': dict(kernel_size=1, bias=False),
    'reflect': dict(kernel_size=3, padding=1, padding_mode='reflect'),
    'circular': dict(kernel_size=5, padding=2, padding_mode='circular'),
    'same': dict(kernel_size=(3, 5), padding='same'),
}


def make_layer(x=None, config=QuantizerConfig(), **geometry):
    geometry = geometry or dict(kernel_size=3)
    conv = nn.Conv2d(4, 8, **geometry)
    layer = LCQConv2d.from_float(conv, config)
    x = torch.randn(2, 4, 9, 9) if x is None else x
    layer.act_quantizer.initialize_(x, signed=bool((x < 0).any()))
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    return conv, layer, x


@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
def test_geometry_is_kept(geometry):
    conv, layer, x = make_layer(**geometry)
    layer.act_quantizer.bypass = layer.weight_quantizer.bypass = True
    assert torch.equal(layer(x), conv(x))


@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
def test_to_float_agrees_exactly(geometry):
    _, layer, x = make_layer(**geometry)
    plain = layer.to_float()
    assert type(plain) is nn.Conv2d
    assert torch.equal(plain(layer.act_quantizer(x)), layer(x))
    assert len(plain.weight.unique()) <= layer.weight_quantizer.num_levels


def quantizations(layer):
    """Count how often the layer quantizes its weight."""
    calls = []
    layer.weight_quantizer.register_forward_hook(
        lambda *arguments: calls.append(arguments))
    return calls


def test_weight_is_quantized_once_in_evaluation():
    _, layer, x = make_layer()
    expected = layer(x)
    calls = quantizations(layer)
    with torch.no_grad():
        layer.eval()
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x), expected)
        assert len(calls) == 1
    layer(x)
    layer.train()
    layer(x)
    assert len(calls) == 3


@pytest.mark.parametrize('key', ['weight', 'weight_quantizer.clip',
                                 'weight_quantizer.theta',
                                 'weight_quantizer.offset'])
@torch.no_grad()
def test_quantized_weight_is_forgotten_when_a_parameter_changes(key):
    _, layer, x = make_layer()
    state = copy.deepcopy(layer.state_dict())
    before = layer.eval()(x)
    layer.get_parameter(key).mul_(torch.rand_like(layer.get_parameter(key)))
    changed = layer(x)
    assert not torch.equal(changed, before)
    layer.load_state_dict(state)
    assert torch.equal(layer(x), before)
    # As mmengine's EMAHook does it, which the tensor's version does not show.
    layer.get_parameter(key).data.mul_(0.5)
    assert not torch.equal(layer.eval()(x), before)


def test_float_keys_and_parameters_are_kept():
    conv, layer, _ = make_layer()
    assert layer.weight is conv.weight and layer.bias is conv.bias
    added = layer.state_dict().keys() - conv.state_dict().keys()
    assert conv.state_dict().keys() < layer.state_dict().keys()
    assert added == {
        f'{child}_quantizer.{key}'
        for child in ('act', 'weight')
        for key in ('clip', 'theta', 'offset', 'signed', 'initialized',
                    'settings')
    } | {'weight_quantizer.packed'}


def test_weight_is_quantized_in_units_of_its_deviation():
    _, layer, _ = make_layer()
    quantizer, weight = layer.weight_quantizer, layer.weight
    std = weight.std(correction=0)
    expected = std * lcq_quantize_reference(weight / std, quantizer.clip,
                                            quantizer.theta, 4, False,
                                            quantizer.offset)
    torch.testing.assert_close(layer.quantized_weight(), expected)


def test_channels_can_be_normalized_one_by_one():
    config = QuantizerConfig(weight_norm='channel')
    _, layer, _ = make_layer(config=config)
    before = layer.quantized_weight()
    factors = torch.logspace(-2, 2, 8).view(8, 1, 1, 1)
    with torch.no_grad():
        layer.weight *= factors
    torch.testing.assert_close(layer.quantized_weight(), before * factors)


@pytest.mark.parametrize('norm', ['std', 'channel', 'none'])
def test_quantized_weight_keeps_the_mean(norm):
    config = QuantizerConfig(weight_bits=8, weight_norm=norm)
    layer = LCQConv2d(4, 64, 3, config=config)
    layer.weight.data += 0.5
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    mean = layer.quantized_weight().mean()
    torch.testing.assert_close(mean, layer.weight.mean(), rtol=0.02, atol=0)


@pytest.mark.parametrize('value', [0., 0.3])
@pytest.mark.parametrize('norm', ['std', 'channel', 'none'])
def test_constant_weight_gives_no_nan(value, norm):
    layer = LCQConv2d(4, 8, 3, config=QuantizerConfig(weight_norm=norm))
    layer.weight.data.fill_(value)
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    weight = layer.quantized_weight()
    weight.sum().backward()
    assert weight.isfinite().all()
    assert layer.weight.grad.isfinite().all()
    torch.testing.assert_close(weight, layer.weight)


def test_non_negative_input_gets_all_levels():
    _, layer, x = make_layer(x=torch.randn(2, 4, 64, 64).relu())
    assert not layer.act_quantizer.is_signed
    assert layer.act_quantizer.num_levels == 16
    assert len(layer.act_quantizer(x).unique()) == 16


def test_signed_input_gets_all_levels_above_an_offset():
    x = torch.randn(2, 4, 64, 64) + 0.5
    _, layer, _ = make_layer(x, QuantizerConfig(act_bits=2))
    quantizer = layer.act_quantizer
    values = quantizer.offset + quantizer.clip * quantizer.levels()
    torch.testing.assert_close(quantizer(x).unique(), values)
    # The Lloyd-Max levels of a Gaussian, to 10 % in the squared error.
    error = (quantizer(x) - x).square().mean()
    assert 0.115 < error < 0.13


@pytest.mark.parametrize('name', ['act', 'weight'])
def test_symmetric_levels_are_an_option(name):
    config = QuantizerConfig().updated({
        'bits': 2,
        f'signed_{name}': 'symmetric'
    })
    _, layer, x = make_layer(config=config)
    quantizer = getattr(layer, f'{name}_quantizer')
    assert quantizer.offset is None and quantizer.num_levels == 3
    values = quantizer(layer.weight if name == 'weight' else x).unique()
    assert len(values) == 3 and values[1] == 0 and values[0] == -values[2]


def test_offset_moves_the_quantizer_with_the_input():
    _, layer, x = make_layer()
    quantizer = layer.act_quantizer
    y = quantizer(x)
    with torch.no_grad():
        quantizer.offset += 4
    torch.testing.assert_close(quantizer(x + 4), y + 4)


def test_gradient_of_the_offset_is_that_of_what_is_clipped():
    _, layer, x = make_layer()
    quantizer = layer.act_quantizer
    magnitude = quantizer.magnitude(x)
    quantizer(x).sum().backward()
    clipped = ((magnitude < 0) | (magnitude > 1)).sum()
    assert clipped and quantizer.offset.grad == clipped


def test_constant_start_covers_both_signs():
    config = QuantizerConfig(init='constant', init_clip=2.)
    _, layer, x = make_layer(config=config)
    quantized = layer.act_quantizer(3 * x)
    assert 0 in quantized
    low, high = quantized.aminmax()
    assert high - low == 4 and -2 < low < -1.8


@pytest.mark.parametrize('distributed', [False, True])
@pytest.mark.parametrize('signed', [False, True])
def test_every_parameter_gets_a_gradient(monkeypatch, signed, distributed):
    monkeypatch.setattr('lcq_mmdet.quantization.quantizer.is_distributed',
                        lambda: distributed)
    _, layer, x = make_layer(
        torch.randn(2, 4, 9, 9) if signed else torch.rand(2, 4, 9, 9))
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        if name == 'act_quantizer.offset' and not signed:
            # The input needs none, but DDP waits for a gradient.
            assert (parameter.grad is not None) == distributed
            assert not distributed or not parameter.grad
        else:
            assert parameter.grad.any(), name


def test_uniform_quantizer_holds_theta_at_zero():
    config = QuantizerConfig(quantizer='uniform')
    _, layer, x = make_layer(config=config)
    layer(x).sum().backward()
    for quantizer in (layer.act_quantizer, layer.weight_quantizer):
        assert quantizer.theta.grad is None and not quantizer.theta.any()
        assert quantizer.clip.grad is not None


def test_state_survives_saving_and_loading():
    _, layer, x = make_layer(x=torch.randn(2, 4, 9, 9).relu())
    other = LCQConv2d(4, 8, 3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_state_survives_deepcopy():
    _, layer, x = make_layer()
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_initialization_fills_in_place():
    layer = LCQConv2d(4, 8, 3)
    before = {k: v.data_ptr() for k, v in layer.state_dict().items()}
    layer.act_quantizer.initialize_(torch.randn(100).relu(), signed=False)
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    after = {k: v.data_ptr() for k, v in layer.state_dict().items()}
    assert before == after


def test_forward_before_initialization_is_refused():
    with pytest.raises(RuntimeError, match='not initialized'):
        LCQConv2d(4, 8, 3)(torch.randn(1, 4, 5, 5))


def test_fusing_batch_norm_is_refused():
    _, layer, _ = make_layer()
    with pytest.raises(RuntimeError, match='fuse'):
        fuse_conv_bn(nn.Sequential(layer, nn.BatchNorm2d(8)).eval())


def test_autocast_runs_the_convolution_in_half():
    _, layer, x = make_layer()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
