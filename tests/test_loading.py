"""Which saved quantizers are used, and which are to be calibrated anew."""
import copy

import pytest
import torch
from torch import nn

from lcq_mmdet import LCQConv2d, convert_
from lcq_mmdet.quantization.calibration import calibrate_
from lcq_mmdet.quantization.config import QuantizerConfig
from lcq_mmdet.quantization.layers import lcq_quantizers

WEIGHT, ACT = 'weight_quantizer', 'act_quantizer'
SIGNED = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))


def make_layer(data=None, **settings):
    """Make a layer, calibrated where there are data."""
    torch.manual_seed(0)
    layer = LCQConv2d(4, 4, 3, config=QuantizerConfig(**settings))
    if data is not None:
        calibrate_(layer, [data])
    return layer


def reload(state, **settings):
    layer = make_layer(**settings)
    layer.load_state_dict(copy.deepcopy(state))
    return layer


def reasons(layer):
    return {name: q.misfit.reason for name, q in lcq_quantizers(layer)
            if q.misfit}


def test_same_settings_are_loaded_as_they_are():
    layer = make_layer(SIGNED)
    other = reload(layer.state_dict())
    assert not reasons(other)
    assert torch.equal(other(SIGNED), layer(SIGNED))


MISFITS = {
    'bits': (dict(weight_bits=4, act_bits=4), dict(weight_bits=2, act_bits=3),
             {WEIGHT: '4 bits and the config 2',
              ACT: '4 bits and the config 3'}),
    'weight_bits': (dict(weight_bits=4), dict(weight_bits=2),
                    {WEIGHT: '4 bits and the config 2'}),
    'to_symmetric': (
        {}, dict(signed_act='symmetric'),
        {ACT: 'levels above an offset and the config symmetric levels'}),
    'to_offset': (
        dict(signed_weight='symmetric'), {},
        {WEIGHT: 'symmetric levels and the config levels above an offset'}),
    'intervals': (dict(num_intervals=8), dict(num_intervals=16),
                  dict.fromkeys((WEIGHT, ACT), '8 intervals and the config '
                                '16')),
    'uniform': ({}, dict(quantizer='uniform'),
                dict.fromkeys((WEIGHT, ACT), "a learned compander and the "
                              "config quantizer='uniform'")),
    'weight_norm': (dict(weight_norm='std'), dict(weight_norm='none'),
                    {WEIGHT: "weight_norm='std' and the config 'none'"}),
}


@pytest.mark.parametrize('case', MISFITS)
def test_quantizers_of_other_settings_are_not_used(case):
    saved, wanted, found = MISFITS[case]
    layer = reload(make_layer(SIGNED, **saved).state_dict(), **wanted)
    assert reasons(layer) == {
        name: f'the checkpoint has {text}' for name, text in found.items()
    }
    for name, quantizer in lcq_quantizers(layer):
        assert quantizer.is_initialized == bool(quantizer.initialized) == (
            name not in found)
    with pytest.raises(RuntimeError, match='not initialized .the checkpoint '
                       'has .* and the config'):
        layer(SIGNED)


@pytest.mark.parametrize('case', MISFITS)
def test_calibrated_anew_they_are_those_of_the_loaded_weights(case):
    saved, wanted, found = MISFITS[case]
    layer = reload(make_layer(SIGNED, **saved).state_dict(), **wanted)
    torch.manual_seed(1)
    assert calibrate_(layer, [SIGNED]) == [
        f'.{name}' for name in (ACT, WEIGHT) if name in found]
    assert not reasons(layer)
    expected = make_layer(**wanted)
    torch.manual_seed(1)
    calibrate_(expected, [SIGNED])
    for name in found:
        assert torch.equal(
            layer.get_submodule(name).levels(),
            expected.get_submodule(name).levels())
    # What is saved now is of these settings.
    assert not reasons(reload(layer.state_dict(), **wanted))


@pytest.mark.parametrize('saved', ['offset', 'symmetric'])
def test_sign_does_not_matter_where_nothing_is_negative(saved):
    wanted = dict(offset='symmetric', symmetric='offset')[saved]
    layer = make_layer(SIGNED.abs(), signed_act=saved)
    other = reload(layer.state_dict(), signed_act=wanted)
    assert not reasons(other)
    assert torch.equal(other(SIGNED.abs()), layer(SIGNED.abs()))


def test_checkpoint_of_before_there_were_settings_is_used():
    state = {key: value
             for key, value in make_layer(SIGNED).state_dict().items()
             if not key.endswith('.settings')}
    layer = reload(state)
    assert not reasons(layer) and layer.weight_quantizer.is_initialized
    assert not reasons(reload(layer.state_dict()))


def test_what_was_never_calibrated_is_no_misfit():
    assert not reasons(reload(make_layer().state_dict(), weight_bits=2))


def test_kept_quantizer_is_of_the_new_bits_from_then_on():
    state = make_layer(SIGNED, weight_bits=4).state_dict()
    layer = reload(state, weight_bits=2)
    layer.weight_quantizer.keep_()
    assert layer(SIGNED).isfinite().all()
    assert torch.equal(layer.weight_quantizer.theta,
                       state['weight_quantizer.theta'])
    assert not reasons(reload(layer.state_dict(), weight_bits=2))
    assert reasons(reload(layer.state_dict(), weight_bits=4))


def test_checkpoint_is_left_as_it_is():
    state = make_layer(SIGNED).state_dict()
    before = copy.deepcopy(state)
    layer = make_layer(
        weight_bits=2, act_bits=2, num_intervals=8, signed_act='symmetric')
    layer.load_state_dict(state)
    calibrate_(layer, [SIGNED])
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_float_checkpoint_leaves_calibrated_quantizers_alone():
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    state = copy.deepcopy(model.state_dict())
    convert_(model, bits=4, modules=['*'])
    calibrate_(model, [SIGNED])
    before = model(SIGNED)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert '0.act_quantizer.clip' in missing and not unexpected
    assert torch.equal(model(SIGNED), before)
