"""LCQDampeningHook in real trainings of a tiny classifier."""
import math

import pytest
import torch
from mmengine.runner import Runner
from torch import nn
from training import assert_equal_states, make_config, state_of, train

from lcq_mmdet import LCQConv2d, LCQError, QuantizerConfig
from lcq_mmdet.hooks import LCQDampeningHook
from lcq_mmdet.hooks.dampening_hook import distance_to_levels
from lcq_mmdet.quantization.layers import lcq_layers


def dampened(weight=0.05):
    return {'default_hooks.lcq_dampening': dict(
        type='LCQDampeningHook', weight=weight)}


@pytest.mark.parametrize('options', [
    dict(), dict(weight_norm='channel'), dict(weight_norm='none'),
    dict(signed_weight='symmetric'), dict(quantizer='lsq')
], ids=lambda options: ','.join(options) or 'default')
def test_only_weights_between_the_levels_are_drawn(options):
    layer = LCQConv2d.from_float(
        nn.Conv2d(4, 6, 3), QuantizerConfig(weight_bits=3, **options))
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    for parameter in layer.weight_quantizer.parameters():
        # Some are clipped.
        if parameter.dim() == 0:
            parameter.data *= 0.4
    loss = distance_to_levels(layer)
    loss.backward()
    weight = layer.weight.detach()
    levels = layer.quantized_weight().detach()
    low, high = (end * layer.weight_quantizer.scale(weight)
                 for end in layer.weight_quantizer.range())
    inside = (weight > low) & (weight < high)
    assert 0 < inside.sum() < inside.numel()
    error = torch.where(inside, weight - levels, 0.)
    assert loss.item() == pytest.approx(error.square().sum().item())
    torch.testing.assert_close(layer.weight.grad, 2 * error)
    for parameter in layer.weight_quantizer.parameters():
        assert parameter.grad is None


def total_distance(model):
    return sum(distance_to_levels(layer).item()
               for _, layer in lcq_layers(model))


def test_weights_come_closer_to_their_levels(tmp_path):
    ends = [
        total_distance(train(make_config(tmp_path / name, **options, **{
            'optim_wrapper.optimizer.lr': 0.02})).model)
        for name, options in (('with', dampened(10.)), ('without', {}))
    ]
    assert ends[0] < 0.5 * ends[1]


def scalars(runner):
    values, _ = runner.message_hub.get_scalar('train/loss_dampening').data
    return values.tolist()


def test_loss_begins_at_zero_and_resuming_goes_on(tmp_path):
    whole = train(make_config(tmp_path / 'whole', **dampened()))
    losses = scalars(whole)
    assert len(losses) == 8 and losses[0] == 0 < losses[1] < losses[7]
    resumed = train(make_config(
        tmp_path / 'resumed', resume=True,
        load_from=str(tmp_path / 'whole/epoch_1.pth'), **dampened()))
    assert scalars(resumed)[-4:] == losses[-4:]
    assert_equal_states(whole.model.state_dict(), resumed.model.state_dict())
    assert not whole.model._forward_hooks
    # In no checkpoint, and in no other run.
    assert state_of(tmp_path / 'whole/epoch_1.pth').keys() == (
        resumed.model.state_dict().keys())


def test_factor_rises_along_half_a_cosine(tmp_path):
    runner = Runner.from_cfg(make_config(tmp_path, **dampened(0.5)))
    hook = next(h for h in runner.hooks if isinstance(h, LCQDampeningHook))
    factors = []

    def after_train_iter(runner, *args, **kwargs):
        factors.append(hook._factor)

    hook.after_train_iter = after_train_iter
    runner.train()
    assert factors == pytest.approx([
        0.25 * (1 - math.cos(math.pi * i / 8)) for i in range(8)])


def test_loss_is_in_float32_in_mixed_precision():
    layer = LCQConv2d.from_float(nn.Conv2d(4, 6, 3), QuantizerConfig())
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = distance_to_levels(layer)
    assert loss.dtype == torch.float32 and loss > 0


@pytest.mark.parametrize('weight', [0, -1., 'a', True, float('inf')])
def test_wrong_weight_is_named(weight):
    with pytest.raises(LCQError, match='lcq_dampening.weight=.*: must be a p'):
        LCQDampeningHook(weight)


def test_run_without_trained_weights_is_refused(tmp_path):
    runner = Runner.from_cfg(make_config(tmp_path))
    for _, layer in lcq_layers(runner.model):
        layer.weight.requires_grad_(False)
    with pytest.raises(LCQError, match='no quantized weight is trained'):
        LCQDampeningHook().before_train(runner)
