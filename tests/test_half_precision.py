"""Models in half precision: what is quantized stays what it was."""
import copy

import pytest
import torch
from exporting import make_config, make_model
from test_mmcv_layers import ALL, make
from torch import nn
from torch.nn import functional as F

from lcq_mmdet import LCQConv2d, LCQError, QuantizerConfig, calibrate_
from lcq_mmdet.export import export_packed
from lcq_mmdet.functional import lcq_quantize, lcq_quantize_reference
from lcq_mmdet.quantization.layers import lcq_quantizers

HALVES = [torch.half, torch.bfloat16]
OPTIONS = [dict(), dict(weight_norm='channel'), dict(out_bits=8)]


def make_layer(**options):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    config = QuantizerConfig().updated(options)
    layer = LCQConv2d.from_float(conv, config)
    calibrate_(layer, [torch.randn(2, 4, 9, 9)])
    # Values that half precision has not.
    with torch.no_grad():
        layer.weight_quantizer.theta.normal_()
    return layer.eval()


@pytest.mark.parametrize('cast', [
    lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.half),
    lambda m: nn.Sequential(m).bfloat16()[0]
], ids=['half', 'bfloat16', 'to', 'nested'])
def test_weight_and_quantizers_stay_as_they_are(cast):
    layer = make_layer()
    before = copy.deepcopy(layer.state_dict())
    layer = cast(layer)
    assert layer.bias.dtype in HALVES
    for key, value in layer.state_dict().items():
        if key != 'bias':
            assert value.dtype == before[key].dtype, key
            assert torch.equal(value, before[key]), key


def test_double_precision_and_back():
    layer = make_layer()
    assert layer.double().act_quantizer.clip.dtype == torch.float64
    assert layer.half().act_quantizer.clip.dtype == torch.float32
    assert layer.float().act_quantizer.theta.dtype == torch.float32


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('dtype', HALVES, ids=str)
@torch.no_grad()
def test_quantization_is_computed_in_float32(dtype, options):
    layer = make_layer(**options)
    layer.to(dtype)
    x = torch.randn(2, 4, 9, 9, dtype=dtype)
    wide = copy.deepcopy(layer).float()
    weight, levels = wide.quantized_weight(), wide.act_quantizer(x.float())
    assert torch.equal(layer.quantized_weight(), weight)
    assert torch.equal(layer.act_quantizer(x), levels.to(dtype))
    expected = F.conv2d(levels.to(dtype), weight.to(dtype), layer.bias,
                        padding=1)
    assert torch.equal(layer(x), expected)


@torch.no_grad()
def test_weight_that_was_half_before_is_quantized_in_float32():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    layers = [LCQConv2d.from_float(copy.deepcopy(conv).half().to(dtype),
                                   QuantizerConfig(weight_norm='channel'))
              for dtype in (torch.half, torch.float32)]
    for layer in layers:
        layer.weight_quantizer.initialize_(layer.weight, signed=True)
    half, wide = (layer.quantized_weight() for layer in layers)
    assert torch.equal(half, wide.half())


@ALL
def test_every_kind_of_layer_in_half_precision(kind):
    if 'deform' in kind or 'modulated' in kind:
        pytest.skip('mmcv has no bfloat16 of it on the CPU')
    _, layer, inputs = make(kind)
    expected = layer(*inputs)
    layer.bfloat16()
    found = layer(*[x.bfloat16() for x in inputs])
    assert found.dtype == torch.bfloat16
    error = (found.float() - expected).norm() / expected.norm()
    assert error < 0.1


def test_memory_format_goes_with_the_type():
    layer = make_layer().to(torch.half, memory_format=torch.channels_last)
    assert layer.weight.dtype == torch.float32
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('quantize', [lcq_quantize, lcq_quantize_reference])
@pytest.mark.parametrize('normalized', [False, True])
@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_functions_compute_in_float32(quantize, normalized, dtype):
    x = (1e-3 * torch.randn(999)).to(dtype)
    clip = torch.tensor(2. if normalized else 2e-3)
    scalars = clip, torch.randn(16), 4, False, -clip / 3, normalized
    expected = lcq_quantize_reference(x.float(), *scalars)
    assert torch.equal(quantize(x, *scalars), expected.to(dtype))


@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_calibration_in_half_precision(dtype):
    torch.manual_seed(1)
    layer = LCQConv2d(4, 4, 3).to(dtype)
    other = copy.deepcopy(layer).float()
    batch = torch.randn(2, 4, 9, 9, dtype=dtype)
    for model, x in ((layer, batch), (other, batch.float())):
        torch.manual_seed(2)
        calibrate_(model, [x])
    for (name, one), (_, same) in zip(
            lcq_quantizers(layer), lcq_quantizers(other)):
        torch.testing.assert_close(one.clip, same.clip, msg=name)
        assert one.clip.dtype == torch.float32


def test_checkpoints_and_optimizers_keep_their_types():
    layer = make_layer().half().train()
    optimizer = torch.optim.AdamW(layer.parameters(), eps=1e-3)
    layer(torch.randn(2, 4, 9, 9).half()).square().mean().backward()
    optimizer.step()
    for name, parameter in layer.named_parameters():
        dtype = torch.half if name == 'bias' else torch.float32
        assert parameter.dtype == dtype, name
        assert optimizer.state[parameter]['exp_avg'].dtype == dtype, name
        assert parameter.isfinite().all(), name
    other = make_layer()
    other.load_state_dict(layer.state_dict())
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    assert torch.equal(other.act_quantizer.clip, layer.act_quantizer.clip)


def test_half_model_is_not_exported(tmp_path):
    cfg = make_config()
    model = make_model(cfg).half()
    with pytest.raises(LCQError, match=r'float16.*model\.float\(\)'):
        export_packed(model, str(tmp_path / 'a.safetensors'), cfg.to_dict())
    pytest.importorskip('onnxruntime')
    from lcq_mmdet.export.graphs import export_onnx
    with pytest.raises(LCQError, match=r'float16.*model\.float\(\)'):
        export_onnx(model, str(tmp_path / 'a.onnx'), cfg.to_dict())
