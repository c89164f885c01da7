"""LCQPreciseBNHook in real trainings of a tiny classifier."""
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from training import (TinyClassifier, TinyDataset, assert_equal_states, load,
                      make_config, train)

from lcq_mmdet import LCQError
from lcq_mmdet.hooks import LCQPreciseBNHook
from lcq_mmdet.hooks.precise_bn_hook import estimate_norms_

# All images there are.
HOOK = {'default_hooks.lcq_precise_bn': dict(
    type='LCQPreciseBNHook', num_batches=4)}


def averaged(update_buffers):
    return dict(custom_hooks=[dict(
        type='EMAHook', momentum=0.3, update_buffers=update_buffers)])


def check_first_norm(state, cfg):
    """Compare saved statistics with those of the saved weights."""
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(state)
    found = []
    conv, norm, _ = model.backbone[0]
    conv.register_forward_hook(lambda *args: found.append(args[2]))
    with torch.no_grad():
        model(TinyDataset().images)
    torch.testing.assert_close(
        norm.running_mean, found[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        norm.running_var, found[0].var((0, 2, 3)), rtol=0.2, atol=1e-3)


def test_saved_statistics_are_those_of_the_saved_weights(tmp_path):
    cfg = make_config(tmp_path / 'with', **HOOK)
    train(cfg)
    state = load(tmp_path / 'with/epoch_2.pth')['state_dict']
    check_first_norm(state, cfg)
    plain = make_config(tmp_path / 'without')
    train(plain)
    other = load(tmp_path / 'without/epoch_2.pth')['state_dict']
    with pytest.raises(AssertionError):
        check_first_norm(other, plain)
    # Training itself is as it was.
    for key, value in state.items():
        if 'running_' not in key and 'num_batches' not in key:
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_weights_get_statistics_of_their_own(update_buffers,
                                                      tmp_path):
    options = dict(HOOK, **averaged(update_buffers))
    cfg = make_config(tmp_path / 'whole', **options)
    train(cfg)
    saved = load(tmp_path / 'whole/epoch_2.pth')
    check_first_norm(saved['state_dict'], cfg)
    # What was saved as the average are the weights that are trained.
    key = 'backbone.0.0.weight'
    assert not torch.equal(saved['state_dict'][key],
                           saved['ema_state_dict'][f'module.{key}'])
    train(make_config(tmp_path / 'resumed', resume=True, load_from=str(
        tmp_path / 'whole/epoch_1.pth'), **options))
    resumed = load(tmp_path / 'resumed/epoch_2.pth')
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal_states(saved[part], resumed[part])


def test_loop_of_iterations_saves_them_too(tmp_path):
    cfg = make_config(tmp_path, **HOOK)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=3)
    train(cfg)
    for name in ('iter_3.pth', 'iter_4.pth'):
        check_first_norm(load(tmp_path / name)['state_dict'], cfg)


def test_norms_that_no_batch_reaches_stay_as_they_are():
    model = TinyClassifier()
    model.unused = nn.BatchNorm2d(4)
    nn.init.constant_(model.unused.running_mean, 7.)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = norms.pop(1).eval()
    nn.init.constant_(kept.running_mean, 5.)
    images = TinyDataset()
    batches = [dict(inputs=images.images[i:i + 8],
                    labels=images.labels[i:i + 8]) for i in (0, 8)]
    estimate_norms_(model, norms, batches)
    assert (model.unused.running_mean == 7).all()
    assert (kept.running_mean == 5).all() and not kept.training
    assert norms[0].num_batches_tracked == 2 and norms[0].momentum == 0.1


def test_model_without_such_norms_is_refused(tmp_path):
    cfg = make_config(tmp_path, **HOOK, **{'model.batch_norm': False})
    with pytest.raises(LCQError, match='lcq_precise_bn: no batch norm'):
        train(cfg)
    with pytest.raises(LCQError, match='num_batches=0: must be an integer'):
        LCQPreciseBNHook(0)


def test_float_model_takes_the_hook_too(tmp_path):
    cfg = make_config(tmp_path, **HOOK)
    cfg.model = dict(type='TinyClassifier')
    cfg.default_hooks.pop('lcq')
    train(cfg)
    check_first_norm(load(tmp_path / 'epoch_2.pth')['state_dict'], cfg)
