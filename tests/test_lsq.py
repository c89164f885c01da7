"""LSQ against scalar float64, against brevitas, and in everything around."""
import copy
import math

import pytest
import torch
from exporting import build, make_config, make_model, outputs
from mmengine.hooks import Hook
from mmengine.runner import Runner, load_checkpoint
from oracle import lsq
from torch import nn
from training import assert_equal_states, load
from training import make_config as classifier_config
from training import train

from lcq_mmdet import (LCQError, LSQQuantizer, QuantizerConfig, calibrate_,
                       convert_)
from lcq_mmdet.export import export_packed
from lcq_mmdet.functional import initial_step
from lcq_mmdet.quantization.layers import lcq_layers, lcq_quantizers

KINDS = [(bits, is_weight, signed) for bits in (2, 3, 4, 8)
         for is_weight, signed in ((True, True), (False, True),
                                   (False, False))]


def make(bits, is_weight, signed, x):
    quantizer = LSQQuantizer(
        QuantizerConfig(weight_bits=bits, act_bits=bits, quantizer='lsq'),
        is_weight).to(x.dtype)
    quantizer.initialize_(x, signed)
    return quantizer


def gradients(quantizer, x, dy):
    x = x.clone().requires_grad_()
    y = quantizer(x)
    return (y.detach(), *torch.autograd.grad(y, [x, quantizer.step], dy))


@pytest.mark.parametrize('bits, is_weight, signed', KINDS)
def test_values_and_gradients_are_those_of_the_oracle(bits, is_weight,
                                                      signed):
    x = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    x = x if signed else x.relu()
    quantizer = make(bits, is_weight, signed, x)
    # So that some are clipped at 8 bits, too.
    quantizer.step.data *= 0.6 if bits < 8 else 0.1
    dy = torch.randn_like(x)
    num_values = x.numel() if is_weight else 5 * 3 * 3
    expected = lsq(x.flatten().tolist(), dy.flatten().tolist(),
                   quantizer.step.item(), bits, signed, num_values)
    y, dx, dstep = gradients(quantizer, x, dy)
    y_expected, dx_expected = (
        torch.tensor(v, dtype=x.dtype).reshape(x.shape)
        for v in (expected.y, expected.x))
    assert 0 < (dx_expected == 0).sum() < x.numel()
    torch.testing.assert_close(y, y_expected, msg='y')
    torch.testing.assert_close(dx, dx_expected, rtol=0, atol=0, msg='dx')
    assert dstep.item() == pytest.approx(expected.step, rel=1e-9)

    # The kernel, in float32.
    single = make(bits, is_weight, signed, x.float())
    single.step.data.fill_(quantizer.step.item())
    y, dx, dstep = gradients(single, x.float(), dy.float())
    torch.testing.assert_close(y.double(), y_expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx.double(), dx_expected, rtol=1e-5, atol=1e-5)
    assert dstep.item() == pytest.approx(expected.step, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize('bits, is_weight, signed', KINDS)
def test_brevitas_computes_the_same(bits, is_weight, signed):
    quant = pytest.importorskip('brevitas.core.quant')
    clamp = pytest.importorskip('brevitas.core.function_wrapper')
    x = torch.randn(6, 5, 3, 3)
    x = x if signed else x.relu()
    quantizer = make(bits, is_weight, signed, x)
    quantizer.step.data *= 0.6 if bits < 8 else 0.1
    dy = torch.randn_like(x)
    num_values = x.numel() if is_weight else 5 * 3 * 3
    theirs = quant.IntQuant(
        narrow_range=False, signed=signed, input_view_impl=clamp.Identity())
    # It clips what is rounded already: up to half a step beyond the outermost
    # level its gradients are those of within. The paper clips first.
    largest = 2**(bits - 1) - 1 if signed else 2**bits - 1
    v = x / quantizer.step.detach()
    beyond = torch.maximum(v - largest, largest - 2**bits + 1 - v)
    dy[(beyond >= 0) & (beyond <= 0.5)] = 0
    assert 0 < (beyond > 0.5).sum() < (beyond < 0).sum()
    step = quantizer.step.detach().clone().requires_grad_()
    leaf = x.clone().requires_grad_()
    expected = theirs(step, torch.tensor(0.), torch.tensor(float(bits)), leaf)
    dx_expected, dstep_expected = torch.autograd.grad(
        expected, [leaf, step], dy)
    y, dx, dstep = gradients(quantizer, x, dy)
    torch.testing.assert_close(y, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx, dx_expected)
    assert dstep.item() * math.sqrt(num_values * largest) == pytest.approx(
        dstep_expected.item(), rel=1e-3, abs=1e-3)


def test_step_starts_from_the_mean_magnitude_of_all_values():
    # More than are sampled elsewhere.
    weight = torch.randn(512, 300)
    quantizer = make(3, True, True, weight)
    expected = 2 * weight.double().abs().mean() / math.sqrt(3)
    assert quantizer.step.item() == pytest.approx(expected.item(), rel=1e-5)
    assert quantizer.num_levels == 8 and quantizer(weight).unique().numel(
    ) == 8
    assert initial_step(weight.relu(), 3, signed=False).item() == (
        pytest.approx(2 * weight.relu().mean().item() / math.sqrt(7)))


def test_weight_of_zeros_can_be_trained():
    weight = torch.zeros(4, 3)
    quantizer = make(4, True, True, weight)
    assert quantizer.step > 0
    assert all(t.isfinite().all() for t in gradients(
        quantizer, weight, torch.ones_like(weight)))


@pytest.mark.parametrize('options, message', [
    (dict(weight_norm='channel'), "^weight_norm='channel': quantizer='lsq' "
     "has its own; leave it out, or set it to 'none'$"),
    (dict(init='mse'), "^init='mse': quantizer='lsq' has its own"),
    (dict(signed_weight='symmetric'), "^signed_weight='symmetric': quan"),
    (dict(signed_act='symmetric'), "^signed_act='symmetric': quantizer='l"),
])
def test_setting_that_lsq_has_not_is_refused(options, message):
    with pytest.raises(LCQError, match=message):
        QuantizerConfig(quantizer='lsq', **options)
    with pytest.raises(LCQError, match=r"overrides\['neck'\].*='lsq' has"):
        convert_(nn.Conv2d(1, 1, 1), quantizer='lsq',
                 overrides={'neck': options})


def test_convolutions_have_no_other_parameters():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    convert_(model, bits=3, modules=['*'], quantizer='lsq',
             first_layer_bits=None)
    calibrate_(model, [torch.randn(2, 3, 9, 9)])
    keys = {key for key in model.state_dict() if '_quantizer.' in key}
    assert keys == {
        f'{layer}.{child}_quantizer.{key}' for layer in '02'
        for child in ('act', 'weight')
        for key in ('step', 'signed', 'initialized', 'packed', 'settings')
        if (child, key) != ('act', 'packed')}
    assert [q.is_signed for _, q in lcq_quantizers(model)] == [
        True, True, False, True]
    model(torch.randn(2, 3, 9, 9)).sum().backward()
    for name, quantizer in lcq_quantizers(model):
        assert quantizer.step.grad is not None or name.startswith('0.act')
    assert copy.deepcopy(model)[2].weight_quantizer.step == (
        model[2].weight_quantizer.step)


@pytest.mark.parametrize('first, then', [('lcq', 'lsq'), ('lsq', 'lcq')])
def test_state_of_another_quantizer_does_not_count_as_calibrated(first, then):
    models = []
    for quantizer in (first, then):
        models.append(nn.Sequential(nn.Conv2d(3, 8, 3)))
        convert_(models[-1], modules=['*'], quantizer=quantizer)
    calibrate_(models[0], [torch.randn(2, 3, 9, 9)])
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    assert not any(q.is_initialized for _, q in lcq_quantizers(models[1]))
    assert len(calibrate_(models[1], [torch.randn(2, 3, 9, 9)])) == 2


def test_packed_file_gives_the_same_bits(tmp_path):
    path = str(tmp_path / 'model.safetensors')
    cfg = make_config(bits=2, quantizer='lsq', per_level=True,
                      modules=['backbone', 'neck', 'bbox_head'])
    model = make_model(cfg)
    export_packed(model, path, cfg.to_dict())
    reloaded = build(cfg)
    load_checkpoint(reloaded, path)
    for _, layer in lcq_layers(model):
        bits = layer.weight_quantizer.bits
        assert len(layer.quantized_weight().unique()) <= 2**bits
    for one, other in zip(outputs(reloaded), outputs(model)):
        assert torch.equal(one, other)


def lsq_config(work_dir, **options):
    return classifier_config(
        work_dir, custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        **{'model.quantizer': 'lsq', 'model.init': 'lloyd_max'}, **options)


def test_training_learns_steps_and_resumes(tmp_path):
    runner = train(lsq_config(tmp_path / 'whole'))
    steps = {key: value for key, value in runner.model.state_dict().items()
             if key.endswith('.step')}
    first = load(tmp_path / 'whole/epoch_1.pth')['ema_state_dict']
    assert len(steps) == 6
    for key, value in steps.items():
        is_image = key == 'backbone.0.0.act_quantizer.step'
        assert torch.equal(value, first[f'module.{key}']) == is_image, key
    group, = (g for g in runner.optim_wrapper.param_groups if any(
        p is runner.model.backbone[1][0].act_quantizer.step
        for p in g['params']))
    assert group['weight_decay'] == 0
    train(lsq_config(tmp_path / 'resumed', resume=True,
                     load_from=str(tmp_path / 'whole/epoch_1.pth')))
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal_states(*(
            load(tmp_path / name / 'epoch_2.pth')[part]
            for name in ('whole', 'resumed')))


class CollapsingStep(Hook):

    def after_train_iter(self, runner, batch_idx, *args, **kwargs):
        runner.model.backbone[1][0].act_quantizer.step.data.fill_(-0.1)


def test_collapsing_step_is_named(tmp_path):
    runner = Runner.from_cfg(lsq_config(
        tmp_path, **{'default_hooks.lcq.check_interval': 1}))
    runner.register_hook(CollapsingStep(), priority='VERY_HIGH')
    with pytest.raises(LCQError, match=r'backbone.1.0.act_quantizer.step=-'):
        runner.train()
