"""LCQDistillHook in real trainings of a tiny detector."""
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from lcq_mmdet import LCQError
from lcq_mmdet.hooks import LCQDistillHook, keep_teacher
from lcq_mmdet.hooks.distill_hook import relative_error


@pytest.fixture
def distill_config(lcq_config):
    lcq_config.default_hooks.lcq_distill = dict(
        type='LCQDistillHook', scores=1.)
    lcq_config.train_cfg.update(max_epochs=1, val_interval=1)
    return lcq_config


def scalars(runner, key='train/loss_distill'):
    values, _ = runner.message_hub.get_scalar(key).data
    return values.tolist()


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, LCQDistillHook))


def test_features_and_scores_come_closer_to_the_float_detector(distill_config):
    distill_config.train_cfg.max_epochs = 4
    # Nothing but the distance to the teacher.
    distill_config.model.bbox_head.loss_cls.loss_weight = 0.
    distill_config.model.bbox_head.loss_bbox.loss_weight = 0.
    distill_config.optim_wrapper.optimizer.weight_decay = 0.
    runner = Runner.from_cfg(distill_config)
    runner.train()
    losses = scalars(runner)
    assert losses[-1] < 0.7 * losses[0]


def test_teacher_is_in_no_state_dict_optimizer_or_average(distill_config):
    distill_config.custom_hooks = [dict(type='EMAHook')]
    runner = Runner.from_cfg(distill_config)
    hook, found = hook_of(runner), {}

    def after_train_iter(runner, *args, **kwargs):
        found['teacher'] = list(hook._teacher.parameters())
        ema = next(h for h in runner.hooks if hasattr(h, 'ema_model'))
        found['ema'] = ema.ema_model
        found['hooks'] = [
            m for m in ema.ema_model.modules() if m._forward_pre_hooks]

    hook.after_train_iter = after_train_iter
    runner.train()
    known = {id(p) for group in runner.optim_wrapper.param_groups
             for p in group['params']}
    teacher = set(map(id, found['teacher']))
    assert not teacher & known
    checkpoint = torch.load(f'{runner.work_dir}/epoch_1.pth')
    assert checkpoint['state_dict'].keys() == Runner.from_cfg(
        Config(dict(distill_config, experiment_name='other'))
    ).model.state_dict().keys()
    for modules in (runner.model, found['ema']):
        assert not teacher & set(map(id, modules.parameters()))
    assert hook._teacher is None and not hook._handles


def test_evaluation_and_resuming_work_as_without(distill_config):
    Runner.from_cfg(distill_config).train()
    distill_config.train_cfg.update(max_epochs=2, val_interval=2)
    keep_teacher(distill_config)
    distill_config.resume = True
    distill_config.load_from = f'{distill_config.work_dir}/epoch_1.pth'
    distill_config.experiment_name = 'resumed'
    runner = Runner.from_cfg(distill_config)
    runner.train()
    assert runner.epoch == 2 and len(scalars(runner)) >= 4


def test_teacher_is_where_training_starts_unless_it_is_named(distill_config):
    hook = distill_config.default_hooks.lcq_distill
    start = distill_config.load_from
    keep_teacher(distill_config)
    assert hook.teacher == start
    distill_config.load_from = 'quantized.pth'
    keep_teacher(distill_config)
    assert hook.teacher == start


def test_no_weight_trains_as_without_the_hook(distill_config):
    distill_config.default_hooks.lcq_distill.update(
        teacher='missing.pth', features=0, scores=0)
    runner = Runner.from_cfg(distill_config)
    runner.train()
    assert 'train/loss_distill' not in runner.message_hub.log_scalars


def test_run_that_is_resumed_without_a_teacher_is_told(distill_config):
    Runner.from_cfg(distill_config).train()
    distill_config.train_cfg.max_epochs = 2
    distill_config.resume = True
    for load_from, message in (
            (None, 'teacher: there is no load_from'),
            (f'{distill_config.work_dir}/epoch_1.pth', 'is of a quantized')):
        distill_config.load_from = load_from
        distill_config.experiment_name = message
        with pytest.raises(LCQError, match=message):
            Runner.from_cfg(distill_config).train()


def test_loss_is_in_float32_whatever_the_features():
    x = torch.full((4000, ), 300.).normal_(mean=300)
    loss = relative_error(x.half(), -x.half())
    # Squares alone would overflow in half precision.
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 1e5


def test_identical_features_have_no_error():
    x = [torch.randn(2, 3), torch.randn(4)]
    assert relative_error(x, x) == 0
    # As large as what is expected itself where nothing is found.
    y = torch.randn(1000)
    y = y - y.mean()
    assert relative_error(torch.zeros(1000), y) == pytest.approx(1)


@pytest.mark.parametrize('options, message', [
    (dict(features=-1), 'lcq_distill.features=-1: must be a number of 0'),
    (dict(scores='a'), "lcq_distill.scores='a': must be a number of 0"),
])
def test_wrong_setting_is_named(options, message):
    with pytest.raises(LCQError, match=message):
        LCQDistillHook('float.pth', **options)


def test_checkpoint_of_another_model_is_named(distill_config, tmp_path):
    path = str(tmp_path / 'other.pth')
    torch.save(dict(state_dict=dict(a=torch.ones(1))), path)
    distill_config.default_hooks.lcq_distill.teacher = path
    with pytest.raises(LCQError, match='is no checkpoint of the float'):
        Runner.from_cfg(distill_config).train()
