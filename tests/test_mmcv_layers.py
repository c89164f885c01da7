"""Quantized layers of every kind beside the float ones they come from."""
import pytest
import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from mmcv.cnn.bricks import Conv2dAdaptivePadding, wrappers
from mmcv.ops import (DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d,
                      ModulatedDeformConv2dPack)
from torch import nn

from lcq_mmdet import QuantizerConfig, convert_
from lcq_mmdet.export import export_packed
from lcq_mmdet.export.reader import load_packed
from lcq_mmdet.quantization.layers import LCQConv2d, LCQLinear, lcq_layers
from lcq_mmdet.quantization.mmcv_layers import QUANTIZED

IMAGE = (2, 4, 9, 10)
OFFSETS, MASKS = (2, 18, 7, 8), (2, 9, 7, 8)
# The layer, and the shapes of what its forward takes.
LAYERS = {
    'depthwise': (lambda: nn.Conv2d(4, 4, 3, groups=4), [IMAGE]),
    'wrapper': (lambda: wrappers.Conv2d(4, 6, 3), [IMAGE]),
    'linear': (lambda: nn.Linear(10, 6), [IMAGE]),
    'linear_wrapper': (lambda: wrappers.Linear(10, 6), [(2, 10)]),
    'adaptive_padding':
    (lambda: Conv2dAdaptivePadding(4, 6, 3, stride=2), [IMAGE]),
    'standardized': (lambda: ConvWS2d(4, 6, 3), [IMAGE]),
    'adaptively_standardized': (lambda: ConvAWS2d(4, 6, 3), [IMAGE]),
    'transposed':
    (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), [IMAGE]),
    'deformable': (lambda: DeformConv2d(4, 6, 3), [IMAGE, OFFSETS]),
    'small_deformable':
    (lambda: DeformConv2d(4, 6, 3, padding=1), [(2, 4, 2, 2), (2, 18, 2, 2)]),
    'deformable_pack': (lambda: DeformConv2dPack(4, 6, 3), [IMAGE]),
    'modulated':
    (lambda: ModulatedDeformConv2d(4, 6, 3), [IMAGE, OFFSETS, MASKS]),
    'modulated_pack': (lambda: ModulatedDeformConv2dPack(4, 6, 3), [IMAGE]),
}
ALL = pytest.mark.parametrize('kind', LAYERS)


def make(kind, **options):
    """A float layer, the same one quantized, and what their forward takes."""
    factory, shapes = LAYERS[kind]
    layer = factory()
    if hasattr(layer, 'conv_offset'):
        nn.init.normal_(layer.conv_offset.weight, std=0.3)
    inputs = [torch.randn(shape) for shape in shapes]
    quantized = QUANTIZED[type(layer)].from_float(
        layer, QuantizerConfig(**options))
    quantized.act_quantizer.initialize_(inputs[0], signed=True)
    quantized.weight_quantizer.initialize_(layer.weight, signed=True)
    return layer, quantized, inputs


@ALL
def test_without_quantization_it_computes_what_the_float_layer_does(kind):
    layer, quantized, inputs = make(kind)
    expected = layer(*inputs)
    quantized.act_quantizer.bypass = quantized.weight_quantizer.bypass = True
    assert torch.equal(quantized(*inputs), expected)


@ALL
def test_forward_quantizes_input_and_weight(kind):
    layer, quantized, inputs = make(kind)
    if hasattr(layer, 'conv_offset'):
        offsets = layer.conv_offset(inputs[0])
        layer.conv_offset.forward = lambda x: offsets
    with torch.no_grad():
        layer.weight.copy_(quantized.quantized_weight().clone())
        expected = layer(quantized.act_quantizer(inputs[0]), *inputs[1:])
        quantized.weight_quantizer.bypass = True
        assert torch.equal(quantized(*inputs), expected)
    assert len(layer.weight.unique()) <= 16


@ALL
def test_to_float_agrees_exactly(kind):
    _, quantized, inputs = make(kind)
    plain = quantized.to_float()
    assert type(plain) is quantized.float_class
    assert not [key for key in plain.state_dict() if '_quantizer' in key]
    if hasattr(plain, 'conv_offset'):
        offsets = plain.conv_offset(inputs[0])
        plain.conv_offset.forward = lambda x: offsets
    x = quantized.act_quantizer(inputs[0])
    assert torch.equal(plain(x, *inputs[1:]), quantized(*inputs))


@ALL
def test_float_keys_and_parameters_are_kept(kind):
    layer, quantized, _ = make(kind)
    assert list(layer.state_dict()) == [
        key for key in quantized.state_dict() if '_quantizer.' not in key
    ]
    for key, parameter in layer.named_parameters():
        assert quantized.get_parameter(key) is parameter


@ALL
def test_every_parameter_gets_a_gradient(kind):
    _, quantized, inputs = make(kind)
    quantized(*inputs).square().sum().backward()
    for key, parameter in quantized.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), key


@ALL
def test_state_dict_goes_round(kind):
    layer, quantized, inputs = make(kind)
    expected = quantized(*inputs)
    other = make(kind)[1]
    assert not torch.equal(other(*inputs), expected)
    other.load_state_dict(quantized.state_dict())
    assert torch.equal(other(*inputs), expected)
    missing = other.load_state_dict(layer.state_dict(), strict=False)
    assert all('_quantizer.' in key for key in missing.missing_keys)
    assert not missing.unexpected_keys


@pytest.mark.parametrize('norm', ['std', 'channel'])
def test_packed_file_holds_every_kind_exactly(norm, tmp_path):
    model = nn.ModuleDict({kind: LAYERS[kind][0]() for kind in LAYERS})
    summary = convert_(model, modules=['*'], bits=3, weight_norm=norm)
    transposed = "weight_norm='channel' does not fit a ConvTranspose2d"
    assert any(transposed in why for why in summary.left_float.values()) == (
        norm == 'channel')
    for _, layer in lcq_layers(model):
        layer.act_quantizer.initialize_(torch.randn(99), signed=True)
        layer.weight_quantizer.initialize_(layer.weight, signed=True)
    path = str(tmp_path / 'model.safetensors')
    export_packed(model, path, {})
    state = load_packed(path)['state_dict']
    for name, layer in lcq_layers(model):
        assert torch.equal(state[f'{name}.weight'], layer.quantized_weight())


def test_padding_stays_zero_where_zero_is_no_level():
    _, quantized, _ = make('adaptive_padding')
    quantized.act_quantizer.offset.data.fill_(1.)
    padded = quantized(torch.full((1, 4, 2, 2), 1.))
    inside = quantized(torch.full((1, 4, 3, 3), 1.))[..., :1, :1]
    assert not torch.allclose(padded, inside)


def test_kinds_of_torch_and_mmcv_become_the_same():
    assert QUANTIZED[nn.Conv2d] is QUANTIZED[wrappers.Conv2d] is LCQConv2d
    assert QUANTIZED[nn.Linear] is QUANTIZED[wrappers.Linear] is LCQLinear
