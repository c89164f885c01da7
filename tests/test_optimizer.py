"""Parameter groups of LCQOptimWrapperConstructor."""
import logging

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

from lcq_mmdet import LCQError, convert_
from lcq_mmdet.conversion.model import apply_lcq
from lcq_mmdet.conversion.optimizer import CONSTRUCTOR


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4),
                          nn.Conv2d(4, 4, 3))
    convert_(model, bits=3, modules=['*'])
    return model


def build(model, optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.3),
          constructor=CONSTRUCTOR, **paramwise):
    return build_optim_wrapper(model, ConfigDict(
        constructor=constructor, optimizer=optimizer,
        paramwise_cfg=paramwise or None)).optimizer


def settings(optimizer, model):
    """Learning rate and decay by the name of a parameter."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (group['lr'], group['weight_decay'])
            for group in optimizer.param_groups for p in group['params']}


def test_quantizers_have_their_settings_without_custom_keys():
    model = make_model()
    optimizer = build(model)
    assert len(optimizer.param_groups) == 3
    for name, found in settings(optimizer, model).items():
        if name.endswith('theta'):
            assert found == (1.0, 0)
        else:
            assert found == (0.1, 0 if '_quantizer.' in name else 0.3), name


def test_custom_keys_go_before_the_defaults():
    model = make_model()
    found = settings(build(model, custom_keys={
        '_quantizer.theta': dict(lr_mult=2),
        '_quantizer.clip': dict(decay_mult=1),
        '0.': dict(lr_mult=0.5)}), model)
    assert found['2.weight_quantizer.theta'] == (0.2, 0)
    assert found['2.weight_quantizer.clip'] == (0.1, 0.3)
    assert found['0.weight'] == (0.05, 0.3)


def test_other_key_of_quantizers_leaves_them_without_decay():
    model = make_model()
    found = settings(build(model, custom_keys={
        '_quantizer.clip': dict(lr_mult=0.5)}), model)
    assert found['2.weight_quantizer.clip'] == (0.05, 0)


@pytest.mark.parametrize('optimizer', [
    dict(type='AdamW', lr=0.1, weight_decay=0.3),
    dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1)
], ids=lambda optimizer: optimizer['type'])
def test_merged_groups_make_the_same_steps(optimizer):
    keys = {'_quantizer.': dict(decay_mult=0),
            '_quantizer.theta': dict(lr_mult=10, decay_mult=0)}
    models = make_model(), make_model()
    for model, constructor in zip(models, (
            CONSTRUCTOR, 'DefaultOptimWrapperConstructor')):
        steps = build(model, optimizer, constructor, custom_keys=keys)
        schedule = torch.optim.lr_scheduler.ExponentialLR(steps, 0.5)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = parameter.detach().cos()
            steps.step()
            schedule.step()
    for one, other in zip(*(model.parameters() for model in models)):
        assert torch.equal(one, other)


def test_shared_layers_are_taken_once():
    model = make_model()
    model.append(model[2])
    optimizer = build(model)
    names = settings(optimizer, model)
    assert len(names) == sum(len(g['params']) for g in optimizer.param_groups)


def test_default_decay_is_written_down():
    model = make_model()
    optimizer = build(model, dict(type='AdamW', lr=0.1))
    assert settings(optimizer, model)['0.weight'] == (0.1, 0.01)


def test_log_has_one_line(caplog):
    logger = MMLogger.get_instance('constructor')
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    build(make_model())
    assert [record.message for record in caplog.records] == [
        'LCQ: the optimizer has 15 parameters in 3 groups of equal settings']


def test_groups_are_plain_for_torch_compile():
    for group in build(make_model()).param_groups:
        assert type(group) is dict


def test_constructor_of_the_user_is_kept(tiny_config):
    tiny_config.optim_wrapper.constructor = 'Mine'
    assert apply_lcq(tiny_config).optim_wrapper.constructor == 'Mine'


def test_config_without_training_gets_no_optimizer(tiny_config):
    for key in ('optim_wrapper', 'train_cfg', 'train_dataloader'):
        tiny_config.pop(key)
    assert 'optim_wrapper' not in apply_lcq(tiny_config)


def test_resuming_with_other_groups_is_refused(lcq_config):
    lcq_config.train_cfg.update(max_epochs=1, val_interval=9)
    lcq_config.optim_wrapper.update(
        constructor='DefaultOptimWrapperConstructor',
        paramwise_cfg=dict(norm_decay_mult=0.))
    Runner.from_cfg(lcq_config).train()
    lcq_config.optim_wrapper.update(
        constructor=CONSTRUCTOR, paramwise_cfg=None)
    lcq_config.update(
        resume=True, load_from=f'{lcq_config.work_dir}/epoch_1.pth',
        experiment_name='resumed')
    with pytest.raises(LCQError, match='^resume: the optimizer of the check'):
        Runner.from_cfg(lcq_config).train()
