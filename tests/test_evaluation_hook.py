"""What an evaluation that fails leaves behind."""
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmengine.runner import Runner, find_latest_checkpoint
from training import load, make_config

from lcq_mmdet.hooks import EvaluationCheckpointHook


class EvaluationError(Exception):
    pass


@METRICS.register_module(force=True)
class FailingMetric(BaseMetric):
    """Fails at one of its evaluations."""

    fails_at = None
    calls = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        FailingMetric.calls += 1
        if FailingMetric.calls == FailingMetric.fails_at:
            raise EvaluationError
        return dict(accuracy=0.)


@pytest.fixture
def run(tmp_path):
    """Train with an evaluation each epoch; the ``fails_at``-th raises."""
    count = iter(range(9))

    def train(fails_at, resume=False, by=None, **changes):
        FailingMetric.calls, FailingMetric.fails_at = 0, fails_at
        cfg = make_config(tmp_path, **changes)
        # In float it is faster, and the same here.
        cfg.model = dict(type='TinyClassifier')
        cfg.default_hooks.pop('lcq')
        cfg.train_cfg = by or dict(by_epoch=True, max_epochs=4)
        cfg.val_dataloader = dict(cfg.train_dataloader)
        cfg.val_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
        cfg.val_cfg = dict(type='ValLoop')
        cfg.val_evaluator = dict(type='FailingMetric')
        # mmengine keeps runners' message hubs by this name.
        cfg.experiment_name += f'_{next(count)}'
        if resume:
            cfg.resume = True
            cfg.load_from = find_latest_checkpoint(str(tmp_path))
        runner = Runner.from_cfg(cfg)
        runner.register_hook(EvaluationCheckpointHook())
        runner.train()
        return runner

    return train


EMA = {'custom_hooks': [dict(type='EMAHook', momentum=0.5)]}
BY_ITERATION = {
    'by': dict(type='IterBasedTrainLoop', max_iters=4, val_interval=1),
    'default_hooks.checkpoint': dict(type='CheckpointHook', by_epoch=False,
                                     interval=100),
}


@pytest.mark.parametrize('interval, name', [
    (1, 'epoch_2.pth'), (9, 'before_evaluation.pth')
])
def test_failed_evaluation_leaves_the_checkpoint_of_its_epoch(
        run, tmp_path, interval, name):
    changes = {'default_hooks.checkpoint':
               dict(type='CheckpointHook', interval=interval)}
    with pytest.raises(EvaluationError):
        run(2, **changes)
    path = find_latest_checkpoint(str(tmp_path))
    assert path.endswith(name)
    meta = load(path)['meta']
    assert (meta['epoch'], meta['iter']) == (2, 8)
    runner = run(None, resume=True, **changes)
    assert (runner.epoch, runner.iter) == (4, 16)
    # Epochs 3 and 4 were evaluated, and epoch 4 was written at the end.
    assert FailingMetric.calls == 2
    assert find_latest_checkpoint(str(tmp_path)).endswith('epoch_4.pth')
    assert not (tmp_path / 'before_evaluation.pth').exists()


def test_checkpoint_before_evaluation_is_as_a_regular_one(run, tmp_path):
    """With EMA, which exchanges weights while it evaluates."""
    states = []
    for interval in (1, 9):
        with pytest.raises(EvaluationError):
            run(2, **EMA, **{
                'default_hooks.checkpoint': dict(
                    type='CheckpointHook', interval=interval)})
        states.append(load(find_latest_checkpoint(str(tmp_path))))
    regular, before = states
    for part in ('state_dict', 'ema_state_dict'):
        assert regular[part].keys() == before[part].keys()
        for key, value in regular[part].items():
            assert torch.equal(value, before[part][key]), key
    assert len(regular['optimizer']['state']) == len(
        before['optimizer']['state'])


def test_training_by_iterations_is_resumed_where_evaluation_failed(
        run, tmp_path):
    with pytest.raises(EvaluationError):
        run(2, **BY_ITERATION)
    path = find_latest_checkpoint(str(tmp_path))
    assert load(path)['meta']['iter'] == 2
    assert run(None, resume=True, **BY_ITERATION).iter == 4


def test_run_without_checkpoints_stays_without(run, tmp_path):
    with pytest.raises(EvaluationError):
        run(2, default_hooks=dict(checkpoint=None))
    assert not list(tmp_path.glob('*.pth'))
