"""Checkpoints of other bits, of other classes and of other detectors."""
import re

import pytest
import torch
from mmengine.runner import Runner
from training import load, make_config, state_of, train

from lcq_mmdet import LCQError
from lcq_mmdet.quantization.layers import lcq_quantizers


@pytest.fixture(scope='module')
def four_bits(tmp_path_factory):
    """A checkpoint of three layers, the first at 8 bits."""
    folder = tmp_path_factory.mktemp('four_bits')
    train(make_config(folder, **{'train_cfg.max_epochs': 1}))
    return str(folder / 'epoch_1.pth')


def config(tmp_path, checkpoint, **changes):
    return make_config(tmp_path, load_from=checkpoint, **{
        'log_level': 'INFO',
        'model.bits': 2,
        'train_cfg.max_epochs': 1,
        'optim_wrapper.optimizer.lr': 0.,
        **changes
    })


def read_log(capfd):
    log = capfd.readouterr()
    return log.out + log.err


def clips(state):
    return {key: value.item() for key, value in state.items()
            if key.endswith('.clip')}


def test_quantizers_of_other_bits_are_calibrated_anew(tmp_path, four_bits,
                                                      capfd):
    runner = train(config(tmp_path, four_bits))
    before, after = clips(state_of(four_bits)), clips(
        state_of(tmp_path / 'epoch_1.pth'))
    same = {key for key in before if before[key] == after[key]}
    assert same == {f'backbone.0.0.{name}_quantizer.clip'
                    for name in ('act', 'weight')}
    line, = re.findall('  calibration .*', read_log(capfd))
    assert '4 quantizers fitted to 16 images' in line
    assert '2 came with the checkpoint; calibrated anew: 4 of 6 (' in line
    assert line.endswith('the checkpoint has 4 bits and the config 2')
    assert not any(q.misfit for _, q in lcq_quantizers(runner.model))


def test_quantizers_of_other_bits_can_be_kept(tmp_path, four_bits, capfd):
    train(config(tmp_path, four_bits,
                 **{'default_hooks.lcq.keep_quantizers': True}))
    state = state_of(tmp_path / 'epoch_1.pth')
    assert clips(state_of(four_bits)) == clips(state)
    assert state['backbone.1.0.weight_quantizer.settings'][0] == 2
    line, = re.findall('  calibration .*', read_log(capfd))
    assert 'all 6 quantizers came with the checkpoint; kept: 4 of 6' in line
    assert line.endswith('although the checkpoint has 4 bits and the '
                         'config 2')


def test_levels_of_another_kind_are_not_kept(tmp_path, four_bits, capfd):
    train(config(tmp_path, four_bits, **{
        'default_hooks.lcq.keep_quantizers': True,
        'model.signed_weight': 'symmetric',
    }))
    line, = re.findall('  calibration .*', read_log(capfd))
    assert 'calibrated anew: 3 of 6' in line and 'kept: 2 of 6' in line
    assert 'levels above an offset and the config symmetric levels' in line


def test_resuming_under_other_bits_is_refused(tmp_path, four_bits):
    runner = Runner.from_cfg(config(tmp_path, four_bits, resume=True))
    with pytest.raises(LCQError, match=r'^resume: of 4 .*\) quantizers the '
                       'checkpoint has 4 bits and the config 2; resume with'):
        runner.train()


def test_moving_average_is_of_the_new_bits(tmp_path, four_bits):
    hook = dict(type='EMAHook', momentum=0.1, update_buffers=True)
    train(config(tmp_path, four_bits, custom_hooks=[hook],
                 **{'optim_wrapper.optimizer.lr': 0.1}))
    checkpoint = load(tmp_path / 'epoch_1.pth')
    for part, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
        state = checkpoint[part]
        key = f'{prefix}backbone.1.0.weight_quantizer'
        assert state[f'{key}.settings'][0] == 2
        assert state[f'{key}.initialized']
        # Not an average with the clip of 4 bits.
        other = checkpoint['state_dict'][key.replace('module.', '') + '.clip']
        assert abs(state[f'{key}.clip'] / other - 1) < 0.1


def test_log_tells_no_missing_quantizers_of_a_float_checkpoint(
        tmp_path, four_bits, capfd):
    state = {key: value for key, value in state_of(four_bits).items()
             if '_quantizer.' not in key}
    torch.save(dict(state_dict=state), tmp_path / 'float.pth')
    train(config(tmp_path, str(tmp_path / 'float.pth')))
    log = read_log(capfd)
    assert 'Load checkpoint from' in log
    assert 'do not match exactly' not in log
    assert '6 quantizers fitted to 16 images' in log
    assert 'anew' not in log and 'not in the checkpoint' not in log


def test_quantizers_that_only_one_of_the_two_has_are_named(
        tmp_path, four_bits, capfd):
    torch.save(
        dict(state_dict={
            key: value for key, value in state_of(four_bits).items()
            if not key.startswith('backbone.2.0.act_quantizer')
        }), tmp_path / 'part.pth')
    train(config(tmp_path, str(tmp_path / 'part.pth'), **{
        'model.bits': 4,
        'model.exclude': ['backbone.1']
    }))
    log = read_log(capfd)
    line, = re.findall('  calibration .*', log)
    assert 'not in the checkpoint: 1 (backbone.2.0.act_quantizer)' in line
    assert line.endswith(
        'of the checkpoint, not in the model: 2 (backbone.1.0.act_quantizer, '
        'backbone.1.0.weight_quantizer)')
    assert 'do not match exactly' not in log


def test_evaluation_calibrates_anew_and_tells_it(lcq_config, tmp_path, capfd):
    runner = Runner.from_cfg(lcq_config)
    runner.test()
    torch.save(runner.model.state_dict(), tmp_path / 'calibrated.pth')
    lcq_config.merge_from_dict({
        'model.bits': 3,
        'load_from': str(tmp_path / 'calibrated.pth'),
        'log_level': 'INFO'
    })
    Runner.from_cfg(lcq_config).test()
    line, = re.findall('LCQ: post-training quantization.*', read_log(capfd))
    assert 'calibrated anew: 54 of 56' in line
    assert 'the checkpoint has 4 bits and the config 3' in line


OTHER_CLASSES = {
    'model.modules': ['backbone', 'neck', 'bbox_head'],
    'model.bbox_head.num_classes': 3,
    'val_cfg': None,
    'val_dataloader': None,
    'val_evaluator': None,
    # What is checked before training is all that is of interest.
    'train_cfg.max_epochs': 0,
    'param_scheduler': None,
}


@pytest.mark.parametrize('quantized', [False, True])
def test_head_of_another_number_of_classes_starts_anew(
        quantized, lcq_config, float_checkpoint, tmp_path, capfd):
    if quantized:
        lcq_config.model.modules = OTHER_CLASSES['model.modules']
        runner = Runner.from_cfg(lcq_config)
        runner.test()
        torch.save(runner.model.state_dict(), tmp_path / 'quantized.pth')
        lcq_config.load_from = str(tmp_path / 'quantized.pth')
    lcq_config.merge_from_dict(dict(OTHER_CLASSES, log_level='INFO'))
    lcq_config.train_dataloader.dataset.metainfo = dict(
        classes=('triangle', 'square', 'star'))
    Runner.from_cfg(lcq_config).train()
    log = read_log(capfd)
    assert ('LCQ: load_from: of another number of classes, these layers start '
            'anew: bbox_head.retina_cls (30 outputs in the checkpoint, 9 in '
            'the model)\n') in log
    assert 'missing keys' not in log
    if quantized:
        assert ('calibrated anew: 1 of 64 (bbox_head.retina_cls.weight_'
                'quantizer), their weights start anew') in log


@pytest.mark.parametrize('change', [
    {'model.bbox_head.feat_channels': 8},
    {'model.bbox_head.stacked_convs': 2},
    {'model.neck.out_channels': 8, 'model.bbox_head.in_channels': 8},
], ids=['channels', 'layers', 'neck'])
def test_another_head_is_another_architecture(change, lcq_config):
    lcq_config.merge_from_dict(dict(OTHER_CLASSES, **change))
    with pytest.raises(LCQError, match='another architecture') as info:
        Runner.from_cfg(lcq_config).train()
    assert 'retina_cls.bias' not in str(info.value)
