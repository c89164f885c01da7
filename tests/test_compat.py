"""Parameter groups that are merged in a step, and nowhere else."""
import copy

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict

from lcq_mmdet.compat import merge_param_groups_


class _Mine(torch.optim.SGD):
    """An optimizer that is not torch's own."""


def make_groups():
    torch.manual_seed(0)
    return [
        dict(
            params=[torch.nn.Parameter(torch.randn(3))],
            weight_decay=0.1 * (i % 2)) for i in range(6)
    ]


def make_steps(optimizer, num_steps=3):
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(num_steps):
        for group in optimizer.param_groups:
            for parameter in group['params']:
                parameter.grad = parameter.detach().cos()
        optimizer.step()
        scheduler.step()


def count_groups(optimizer):
    """Return a list that gets the number of groups in each step."""
    counts = []
    optimizer.register_step_pre_hook(
        lambda *_: counts.append(len(optimizer.param_groups)))
    return counts


@pytest.mark.parametrize('make', [
    lambda groups: torch.optim.AdamW(groups, lr=0.1),
    lambda groups: torch.optim.AdamW(groups, lr=0.1, foreach=True),
    lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)
], ids=['adamw', 'adamw_foreach', 'sgd'])
def test_merged_groups_change_nothing_but_the_step(make):
    plain, merged = make(make_groups()), make(make_groups())
    merge_param_groups_(OptimWrapper(merged))
    counts = count_groups(merged)
    make_steps(plain)
    make_steps(merged)
    assert counts == [2, 2, 2]
    for ours, same in zip(merged.param_groups, plain.param_groups):
        assert torch.equal(ours['params'][0], same['params'][0])
    ours, same = merged.state_dict(), plain.state_dict()
    assert ours['param_groups'] == same['param_groups']
    # What one of them saved, the other resumes from.
    other = make(make_groups())
    merge_param_groups_(OptimWrapper(other))
    other.load_state_dict(copy.deepcopy(same))
    make_steps(other, 1)


@pytest.mark.parametrize('make', [
    lambda groups: torch.optim.AdamW(groups, lr=0.1),
    lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)
], ids=['adamw', 'sgd'])
def test_fused_steps(make):
    plain, fused = make(make_groups()), make(make_groups())
    taken = [group['params'][0] for group in fused.param_groups[1:]]
    merge_param_groups_(OptimWrapper(fused), iter(taken))
    counts, choices = count_groups(fused), []
    fused.register_step_pre_hook(lambda *_: choices.append(
        {id(p): group['fused'] for group in fused.param_groups
         for p in group['params']}))
    for optimizer in (plain, fused):
        for num_grads in (4, 6, 6):
            # As of a quantizer that takes part later on.
            for group in optimizer.param_groups[:num_grads]:
                parameter, = group['params']
                parameter.grad = parameter.detach().cos()
            optimizer.step()
    assert counts == [3, 5, 3]
    assert all(choice[id(p)] for choice in choices for p in taken)
    assert not any(choice[id(fused.param_groups[0]['params'][0])]
                   for choice in choices)
    for ours, same in zip(fused.param_groups, plain.param_groups):
        torch.testing.assert_close(ours['params'], same['params'])
    ours, same = fused.state_dict(), plain.state_dict()
    assert ours['param_groups'] == same['param_groups']
    torch.testing.assert_close(ours['state'], same['state'])
    # What one of them saved, the other resumes from.
    plain.load_state_dict(ours)
    fused.load_state_dict(same)
    make_steps(plain, 1)
    make_steps(fused, 1)


@pytest.mark.parametrize('chosen', [
    dict(foreach=True), dict(fused=False), dict(lr=torch.tensor(0.1)),
    dict(differentiable=True), dict(dtype=torch.bfloat16)
], ids=str)
def test_other_choices_are_not_fused(chosen):
    dtype = chosen.pop('dtype', torch.float32)
    groups = make_groups()
    for group in groups:
        group['params'][0].data = group['params'][0].to(dtype)
    optimizer = torch.optim.AdamW(groups, **chosen)
    parameters = [group['params'][0] for group in optimizer.param_groups]
    merge_param_groups_(OptimWrapper(optimizer), parameters)
    optimizer.register_step_pre_hook(lambda *_: fused.extend(
        group['fused'] for group in optimizer.param_groups))
    fused = []
    optimizer.step()
    assert fused and not any(fused)


def test_fused_steps_of_several_optimizers_tell_of_their_changes():
    optimizers = [torch.optim.SGD(make_groups(), lr=0.1) for _ in range(2)]
    parameters = [group['params'][0] for optimizer in optimizers
                  for group in optimizer.param_groups]
    merge_param_groups_(
        OptimWrapperDict(**{
            str(i): OptimWrapper(optimizer)
            for i, optimizer in enumerate(optimizers)
        }), iter(parameters))
    for optimizer in optimizers:
        counts = count_groups(optimizer)
        versions = [p._version for p in parameters]
        make_steps(optimizer, 1)
        assert counts == [2]
        told = [p._version > v for p, v in zip(parameters, versions)]
        assert sum(told) == 6
        assert all(g['fused'] is None for g in optimizer.param_groups)


def test_settings_of_any_type_are_compared():
    shared = [0.5]
    groups = make_groups()[::2]
    for group, extra in zip(groups, (shared, shared, {})):
        group['extra'] = extra
    optimizer = torch.optim.SGD(groups, lr=0.1)
    merge_param_groups_(OptimWrapper(optimizer))
    counts = count_groups(optimizer)
    optimizer.step()
    assert counts == [2]


def test_groups_come_back_after_a_step_that_failed():
    optimizer = torch.optim.SGD(make_groups(), lr=0.1)
    merge_param_groups_(OptimWrapper(optimizer))

    def fail():
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        optimizer.step(fail)
    make_steps(optimizer, 1)
    assert len(optimizer.param_groups) == 6


def test_equal_tensors_are_not_read():
    groups = make_groups()[::2]
    for group, value in zip(groups, (0.1, 0.1, 0.2)):
        group['lr'] = torch.tensor(value)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    merge_param_groups_(OptimWrapper(optimizer))
    counts = count_groups(optimizer)
    optimizer.step()
    assert counts == [3]


def test_optimizers_of_others_are_left_alone():
    optimizer = _Mine(make_groups(), lr=0.1)
    merge_param_groups_(OptimWrapper(optimizer))
    counts = count_groups(optimizer)
    optimizer.step()
    assert counts == [6]
