"""What a training has to live through, on a model of three convolutions."""
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn
from training import (TinyClassifier, assert_equal_states, load, make_config,
                      state_of, train)

from lcq_mmdet import LCQError, convert_
from lcq_mmdet.quantization.calibration import initialize_, observe
from lcq_mmdet.quantization.layers import lcq_layers

NO_NORM = {'model.batch_norm': False}


@pytest.fixture(scope='module')
def calibrated(tmp_path_factory):
    """A checkpoint with quantizers, of a model without batch norm."""
    folder = tmp_path_factory.mktemp('calibrated')
    cfg = make_config(folder, **NO_NORM, **{
        'optim_wrapper.optimizer.lr': 0.,
        'train_cfg.max_epochs': 1
    })
    train(cfg)
    return str(folder / 'epoch_1.pth')


def test_it_learns(tmp_path):
    runner = train(make_config(tmp_path, **{'train_cfg.max_epochs': 15}))
    data = runner.train_dataloader.dataset
    runner.model.eval()
    scores = runner.model(data.images)
    assert (scores.argmax(1) == data.labels).float().mean() > 0.9


@pytest.mark.parametrize('optim_wrapper, is_told', [
    (dict(constructor='LCQOptimWrapperConstructor'), False),
    (dict(paramwise_cfg=dict(
        custom_keys={'_quantizer.': dict(decay_mult=0)})), True),
    (dict(paramwise_cfg=dict(
        custom_keys={'_quantizer.theta': dict(lr_mult=5)})), False),
], ids=['constructor', 'decay_alone', 'custom_keys'])
def test_companders_that_learn_at_another_rate_are_told(
        optim_wrapper, is_told, tmp_path, capfd):
    cfg = make_config(tmp_path, **{
        'log_level': 'WARNING',
        'optim_wrapper.optimizer.weight_decay': 1e-4,
        'train_cfg.max_epochs': 1
    })
    del cfg.optim_wrapper['constructor']
    cfg.optim_wrapper.update(optim_wrapper)
    train(cfg)
    log = capfd.readouterr()
    assert ("constructor=None: no setting gives theta ten times"
            in log.out + log.err) == is_told


def test_accumulated_gradients_are_those_of_the_larger_batch(
        calibrated, tmp_path):
    whole = train(make_config(
        tmp_path / 'whole', load_from=calibrated, **NO_NORM))
    parts = train(make_config(
        tmp_path / 'parts', load_from=calibrated, **NO_NORM, **{
            'train_dataloader.batch_size': 4,
            'optim_wrapper.accumulative_counts': 2
        }))
    assert parts.iter == 2 * whole.iter
    # Values near the border of two levels may take the other one.
    assert_equal_states(whole.model.state_dict(), parts.model.state_dict(),
                        rtol=1e-3, atol=1e-5)


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper is for GPUs only."""

    def optim_context(self, model):
        return torch.autocast('cpu', dtype=torch.bfloat16)


def test_mixed_precision_keeps_quantizers_in_float32(tmp_path):
    runner = train(make_config(tmp_path, **{
        'optim_wrapper.type': 'Bfloat16OptimWrapper',
        'train_cfg.max_epochs': 15
    }))
    model = runner.model.eval()
    data = runner.train_dataloader.dataset
    with torch.autocast('cpu', dtype=torch.bfloat16):
        scores = model(data.images)
    assert scores.dtype == torch.bfloat16
    assert (scores.argmax(1) == data.labels).float().mean() > 0.9
    for key, value in model.state_dict().items():
        assert value.isfinite().all(), key
        assert value.dtype in (torch.float32, torch.bool, torch.int64), key


@pytest.mark.parametrize('buffers', [False, True])
def test_moving_average_starts_calibrated_and_resumes(buffers, tmp_path):
    ema = dict(type='EMAHook', momentum=0.1, update_buffers=buffers)
    options = dict(custom_hooks=[ema])
    whole = train(make_config(tmp_path / 'whole', **options))
    average = load(tmp_path / 'whole/epoch_2.pth')
    assert average['state_dict'].keys() < average['ema_state_dict'].keys() | {
        key[len('module.'):] for key in average['ema_state_dict']}
    for key, value in average['state_dict'].items():
        assert value.isfinite().all(), key
        if key.endswith('.initialized'):
            assert value, key
        if key.endswith('weight_quantizer.clip'):
            # Not an average with the clip before calibration, which is 1.
            assert value > 1.5, key
    train(make_config(
        tmp_path / 'resumed', resume=True,
        load_from=str(tmp_path / 'whole/epoch_1.pth'), **options))
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal_states(
            average[part], load(tmp_path / 'resumed/epoch_2.pth')[part])
    assert whole.iter == 8


def test_averaged_model_evaluates_as_it_was_saved(tmp_path):
    ema = dict(type='EMAHook', momentum=0.1)
    train(make_config(tmp_path, custom_hooks=[ema]))
    # What is saved as the model is its average.
    cfg = make_config(tmp_path, load_from=str(tmp_path / 'epoch_2.pth'))
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    runner.model.eval()
    assert runner.model(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_batch_norm_becomes_synchronized():
    model = TinyClassifier()
    convert_(model, bits=3)
    layers = dict(lcq_layers(model))
    keys = list(model.state_dict())
    model = convert_sync_batchnorm(model)
    assert dict(lcq_layers(model)) == layers
    assert list(model.state_dict()) == keys
    norms = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 3
    images = torch.randn(2, 3, 8, 8)
    with observe(model) as observations:
        model(images)
    initialize_(model, observations)
    assert model.eval()(images).isfinite().all()


def test_activation_checkpointing_changes_nothing(tmp_path):
    states = [
        train(make_config(tmp_path / str(with_cp), **{
            'model.with_cp': with_cp,
            'model.batch_norm': False
        })).model.state_dict() for with_cp in (False, True)
    ]
    assert_equal_states(*states)


def test_compiled_training_gives_the_same(calibrated, tmp_path):
    options = dict(NO_NORM, load_from=calibrated)
    plain = train(make_config(tmp_path / 'plain', **options))
    compiled = train(make_config(
        tmp_path / 'compiled', compile=dict(backend='eager'), **options))
    assert_equal_states(plain.model.state_dict(), compiled.model.state_dict(),
                        rtol=1e-3, atol=1e-5)


class Killed(BaseException):
    """Stands for what no code can catch."""


class KillHook(Hook):
    """Die at a point of the training."""
    priority = 'LOWEST'

    def __init__(self, point):
        self.point = point

    def before_train(self, runner):
        if self.point == 'calibrated':
            raise Killed

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        if self.point == runner.iter:
            raise Killed

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.point == 'evaluation' and runner.epoch == 2:
            raise Killed


def kill_at(point, cfg, monkeypatch):
    """Train until something happens."""
    runner = Runner.from_cfg(cfg)
    with monkeypatch.context() as patch:
        if point == 'calibration':
            patch.setattr('lcq_mmdet.hooks.lcq_hook.initialize_', die)
        elif point == 'checkpoint':
            patch.setattr(Runner, 'save_checkpoint', die_writing)
        else:
            runner.register_hook(KillHook(point))
        with pytest.raises(Killed):
            runner.train()


def die(*args, **kwargs):
    raise Killed


save_checkpoint = Runner.save_checkpoint


def die_writing(self, out_dir, filename, *args, **kwargs):
    if self.epoch == 1:
        Path(out_dir, filename).write_bytes(b'PK half of a checkpoint')
        raise Killed
    save_checkpoint(self, out_dir, filename, *args, **kwargs)


EVALUATION = dict(
    val_dataloader=dict(
        batch_size=8, num_workers=0, dataset=dict(type='TinyDataset'),
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='DefaultSampler', shuffle=False)),
    val_cfg=dict(),
    val_evaluator=dict(type='DumpResults', out_file_path='unused.pkl'))


@pytest.mark.parametrize(
    'point', ['calibration', 'calibrated', 1, 5, 'checkpoint', 'evaluation'])
def test_killed_training_goes_on_to_the_same_weights(point, tmp_path,
                                                     monkeypatch):
    changes = {}
    if point == 'evaluation':
        changes = json.loads(json.dumps(EVALUATION))
        changes['val_evaluator']['out_file_path'] = str(tmp_path / 'out.pkl')
    train(make_config(tmp_path / 'whole', **changes))
    cfg = make_config(tmp_path / 'killed', **changes)
    kill_at(point, cfg, monkeypatch)
    assert_resumes_to_the_same(cfg, tmp_path / 'whole/epoch_2.pth')


def assert_resumes_to_the_same(cfg, whole):
    """Train on as tools/train.py --resume does."""
    latest = find_latest_checkpoint(cfg.work_dir)
    if latest:
        cfg.resume, cfg.load_from = True, latest
    train(cfg)
    assert_equal_states(
        state_of(whole), state_of(Path(cfg.work_dir, 'epoch_2.pth')))


class SignalHook(KillHook):
    """Be killed as a job that is out of memory or time is."""

    def after_train_iter(self, runner, *args, **kwargs):
        if self.point == runner.iter:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_signal(work_dir):
    runner = Runner.from_cfg(make_config(work_dir))
    runner.register_hook(SignalHook(5))
    runner.train()


def test_training_killed_by_a_signal_goes_on_to_the_same_weights(tmp_path):
    train(make_config(tmp_path / 'whole'))
    process = multiprocessing.get_context('spawn').Process(
        target=train_until_signal, args=(tmp_path / 'killed', ))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / 'killed/epoch_2.pth').exists()
    assert_resumes_to_the_same(
        make_config(tmp_path / 'killed'), tmp_path / 'whole/epoch_2.pth')


def test_nothing_is_saved_after_the_last_iteration_diverged(tmp_path):
    """The interval is not over then, but that iteration is always saved."""
    cfg = make_config(tmp_path, **{
        'model.nan_after': 8,
        'train_cfg': dict(type='IterBasedTrainLoop', max_iters=9,
                          _delete_=True),
        'default_hooks.lcq.check_interval': 100,
        'default_hooks.checkpoint': dict(
            type='CheckpointHook', interval=6, by_epoch=False)
    })
    with pytest.raises(LCQError, match='after iteration 9'):
        train(cfg)
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_6.pth']


@pytest.mark.parametrize('by_epoch', [True, False])
def test_nan_loss_leaves_the_last_good_checkpoint(by_epoch, tmp_path):
    cfg = make_config(tmp_path, **{
        'model.nan_after': 5,
        'default_hooks.checkpoint': dict(
            type='CheckpointHook', interval=1 if by_epoch else 2,
            by_epoch=by_epoch, max_keep_ckpts=1)
    })
    with pytest.raises(LCQError, match=r'backbone.0.0.\S+ after iter'):
        train(cfg)
    name = 'epoch_1.pth' if by_epoch else 'iter_4.pth'
    assert [path.name for path in tmp_path.glob('*.pth')] == [name]
    assert all(value.isfinite().all()
               for value in state_of(tmp_path / name).values())
    assert find_latest_checkpoint(str(tmp_path)) == str(tmp_path / name)


def test_nan_loss_is_told_where_the_layers_are_finite(tmp_path):
    cfg = make_config(tmp_path, **{
        'model.nan_after': 1,
        'default_hooks.lcq.check_interval': 1,
        'optim_wrapper.optimizer.lr': 0.1,
        'optim_wrapper.accumulative_counts': 4
    })
    with pytest.raises(LCQError, match='loss=nan after iteration 2, with all'):
        train(cfg)


class CollapsingClip(Hook):
    """Make a clip negative, as too large a learning rate may."""

    def after_train_iter(self, runner, batch_idx, *args, **kwargs):
        if batch_idx == 2:
            runner.model.backbone[1][0].act_quantizer.clip.data.fill_(-0.1)


def test_collapsing_clip_is_named(tmp_path):
    runner = Runner.from_cfg(make_config(
        tmp_path, **{'default_hooks.lcq.check_interval': 1}))
    runner.register_hook(CollapsingClip(), priority='VERY_HIGH')
    with pytest.raises(LCQError, match=r'backbone.1.0.act_quantizer.clip=-'):
        runner.train()
    assert runner.iter == 2
