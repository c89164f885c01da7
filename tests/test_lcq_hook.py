"""The hook in a real run on generated data, and its refusals."""
import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from training import assert_equal_states, state_of

from lcq_mmdet import LCQConv2d, LCQError, LCQQuantizer
from lcq_mmdet.hooks import LCQHook
from lcq_mmdet.hooks.soundness import describe_norms
from lcq_mmdet.quantization.layers import lcq_layers, lcq_quantizers


def train(cfg, **options):
    cfg = cfg.copy()
    cfg.merge_from_dict(options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.fixture
def initializations(monkeypatch):
    """Count how often a quantizer is filled in."""
    calls = []
    initialize_ = LCQQuantizer.initialize_

    def count(self, *args, **kwargs):
        calls.append(self)
        initialize_(self, *args, **kwargs)

    monkeypatch.setattr(LCQQuantizer, 'initialize_', count)
    return calls


def test_training_calibrates_learns_and_evaluates(lcq_config, capfd):
    lcq_config.log_level = 'INFO'
    runner = train(lcq_config)
    model = runner.model
    optimizer = runner.optim_wrapper.optimizer
    assert len(optimizer.param_groups) == 3
    assert all(m.act_quantizer.is_initialized and
               m.weight_quantizer.is_initialized for _, m in lcq_layers(model))
    first, last = (
        state_of(f'{runner.work_dir}/epoch_{epoch}.pth') for epoch in (1, 2))
    for key in first:
        if key.endswith(('_quantizer.clip', '_quantizer.theta')):
            is_image = key.startswith('backbone.conv1.act_quantizer')
            assert torch.equal(first[key], last[key]) == is_image, key
    signed = {n: m.act_quantizer.is_signed for n, m in lcq_layers(model)}
    assert signed['backbone.conv1'] and signed['neck.fpn_convs.0.conv']
    assert not signed['backbone.layer1.0.conv1']
    assert not signed['neck.lateral_convs.0.conv']
    log = capfd.readouterr()
    log = log.out + log.err
    assert '56 quantizers fitted to 16 images' in log
    assert 'all 165 trained quantizer parameters are in it' in log
    assert 'keys matched, 0 missing, 0 unexpected' in log
    assert 'backbone.conv1' in log and 'GMACs an image' in log
    scalars = next(Path(runner.work_dir).glob('*/vis_data/scalars.json'))
    last = json.loads(scalars.read_text().splitlines()[-1])
    assert 0 <= last['coco/bbox_mAP'] <= 1


def test_describing_batch_norm_leaves_modes_as_they_are():
    model = torch.nn.Sequential(
        torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    for modes in ([False] * 3, [True, False, True]):
        for module, mode in zip(model, modes):
            module.training = mode
        assert describe_norms(model).startswith('2 batch norm layers follow')
        assert [module.training for module in model] == modes


def test_resume_continues_exactly_and_does_not_recalibrate(
        lcq_config, tmp_path, initializations):
    whole = train(lcq_config)
    assert len(initializations) == 56
    stopped = dict(work_dir=str(tmp_path / 'resumed'))
    train(lcq_config, load_from=f'{whole.work_dir}/epoch_1.pth', resume=True,
          **stopped)
    assert len(initializations) == 56
    assert_equal_states(
        state_of(f'{whole.work_dir}/epoch_2.pth'),
        state_of(tmp_path / 'resumed' / 'epoch_2.pth'))


def test_calibration_is_the_same_each_time(lcq_config, tmp_path):
    options = dict(train_cfg=dict(max_epochs=1, val_interval=9))
    for name in ('one', 'other'):
        train(lcq_config, work_dir=str(tmp_path / name), **options)
    assert_equal_states(*(state_of(tmp_path / name / 'epoch_1.pth')
                          for name in ('one', 'other')))


def test_test_alone_is_post_training_quantization(lcq_config, tmp_path,
                                                  initializations):
    runner = Runner.from_cfg(lcq_config)
    metrics = runner.test()
    assert len(initializations) == 56
    assert 'coco/bbox_mAP' in metrics
    path = tmp_path / 'calibrated.pth'
    torch.save(runner.model.state_dict(), path)
    lcq_config.load_from = str(path)
    assert Runner.from_cfg(lcq_config).test() == metrics
    assert len(initializations) == 56


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_weights_are_calibrated_before_a_test(
        lcq_config, update_buffers):
    expected = Runner.from_cfg(lcq_config).test()
    lcq_config.custom_hooks = [
        dict(type='EMAHook', update_buffers=update_buffers)]
    runner = Runner.from_cfg(lcq_config)
    assert runner.test() == expected
    hook = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
    for _, quantizer in lcq_quantizers(hook.ema_model.module):
        assert quantizer.is_initialized and quantizer.clip != 1


def test_options_of_initialization(lcq_config):
    lcq_config.model.update(init='constant', init_clip=2.5)
    runner = Runner.from_cfg(lcq_config)
    runner.test()
    for _, layer in lcq_layers(runner.model):
        for quantizer in (layer.act_quantizer, layer.weight_quantizer):
            assert quantizer.clip == 2.5 * (1 + quantizer.is_signed)
        assert not layer.act_quantizer.theta.any()


def test_run_without_float_checkpoint_is_refused(lcq_config):
    with pytest.raises(LCQError, match='load_from: no float checkpoint'):
        train(lcq_config, load_from=None)


def test_checkpoint_of_another_architecture_is_refused(
        lcq_config, float_checkpoint, tmp_path):
    state = state_of(float_checkpoint)
    state['backbone.conv1.weight'] = torch.zeros(4, 3, 7, 7)
    del state['neck.lateral_convs.0.conv.weight']
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict=state), path)
    with pytest.raises(LCQError, match='another architecture') as info:
        train(lcq_config, load_from=str(path))
    assert 'backbone.conv1.weight' in str(info.value)
    assert 'neck.lateral_convs.0.conv.weight' in str(info.value)
    train(lcq_config, **{
        'load_from': str(path),
        'default_hooks.lcq.require_float': False,
        'train_cfg.max_epochs': 1
    })


def test_checkpoint_with_another_head_is_welcome(lcq_config, float_checkpoint,
                                                 tmp_path):
    state = state_of(float_checkpoint)
    state = {k: v for k, v in state.items() if 'retina_cls' not in k}
    path = tmp_path / 'head.pth'
    torch.save(dict(state_dict=state), path)
    train(lcq_config, **{
        'load_from': str(path),
        'train_cfg.max_epochs': 1
    })


def test_float_model_is_refused(tiny_config):
    tiny_config.default_hooks.lcq = dict(type='LCQHook')
    with pytest.raises(LCQError, match='no quantized layer'):
        train(tiny_config)


def test_not_finite_activations_are_named(lcq_config, float_checkpoint,
                                          tmp_path):
    state = state_of(float_checkpoint)
    state['backbone.layer2.0.bn1.weight'].fill_(float('nan'))
    path = tmp_path / 'nan.pth'
    torch.save(dict(state_dict=state), path)
    with pytest.raises(LCQError, match=r'backbone.layer2.0.conv2: its input '
                       'is NaN or infinite'):
        train(lcq_config, load_from=str(path))


def test_constant_activations_are_named(lcq_config, float_checkpoint,
                                        tmp_path):
    state = state_of(float_checkpoint)
    state['backbone.layer2.0.bn1.weight'].fill_(0.)
    state['backbone.layer2.0.bn1.bias'].fill_(-1.)
    path = tmp_path / 'dead.pth'
    torch.save(dict(state_dict=state), path)
    with pytest.raises(LCQError, match=r'backbone.layer2.0.conv2: its input '
                       'is 0 everywhere'):
        train(lcq_config, load_from=str(path))


def test_bypassed_convolution_is_named(lcq_config, monkeypatch):
    runner = Runner.from_cfg(lcq_config)
    layer = runner.model.backbone.layer1[0].conv1
    layer.forward = lambda x: LCQConv2d._conv_forward(layer, x, layer.weight,
                                                      None)
    with pytest.raises(LCQError, match=r'backbone.layer1.0.conv1: forward did '
                       'not reach'):
        runner.train()


def test_quantizer_outside_the_optimizer_is_named(lcq_config):
    runner = Runner.from_cfg(lcq_config)
    clip = runner.model.backbone.conv1.act_quantizer.clip
    runner.model.backbone.conv1.act_quantizer.clip = torch.nn.Parameter(
        clip.detach().clone())
    build_optim_wrapper = runner.build_optim_wrapper

    def build_without(*args):
        wrapper = build_optim_wrapper(*args)
        lost = id(runner.model.backbone.conv1.act_quantizer.clip)
        for group in wrapper.param_groups:
            group['params'] = [p for p in group['params'] if id(p) != lost]
        return wrapper

    runner.build_optim_wrapper = build_without
    with pytest.raises(LCQError, match='backbone.conv1.act_quantizer.clip'):
        runner.train()


@pytest.mark.parametrize('value', [-1., 0., float('nan'), float('inf')])
def test_diverged_clip_stops_training(value):
    layer = LCQConv2d(3, 4, 3)
    layer.act_quantizer.clip.data.fill_(value)
    runner = Mock(model=torch.nn.Sequential(layer), iter=49, hooks=[])
    hook = LCQHook(check_interval=50)
    with pytest.raises(LCQError, match='0.act_quantizer.clip=') as info:
        hook.after_train_iter(runner, 49)
    assert 'after iteration 50' in str(info.value)


@pytest.mark.parametrize('options', [dict(num_batches=0),
                                     dict(check_interval=1.5)])
def test_options_are_checked(options):
    key, value = next(iter(options.items()))
    with pytest.raises(LCQError, match=f'{key}={value}'):
        LCQHook(**options)


def test_random_state_is_left_alone(lcq_config):
    runner = Runner.from_cfg(lcq_config)
    hook = next(h for h in runner.hooks if isinstance(h, LCQHook))
    runner.load_or_resume()
    assert runner.train_dataloader
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    hook.before_test(runner)
    assert torch.equal(torch.rand(1), expected)
