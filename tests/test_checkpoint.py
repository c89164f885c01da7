import pytest
import torch
from torch import nn

from lcq_mmdet import convert_
from lcq_mmdet.conversion.checkpoint import match_keys
from lcq_mmdet.errors import some


@pytest.fixture
def model():
    return nn.ModuleDict(
        dict(backbone=nn.Conv2d(3, 4, 1), neck=nn.Conv2d(4, 4, 1)))


KEYS = ['backbone.bias', 'backbone.weight', 'neck.bias', 'neck.weight']


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('wrap', [lambda state: state,
                                  lambda state: dict(state_dict=state, x=1)])
def test_own_checkpoint_matches_as_it_is_saved(model, prefix, wrap):
    state = {prefix + key: v for key, v in model.state_dict().items()}
    match = match_keys(model, wrap(state))
    assert sorted(match.matched) == KEYS
    assert match.missing == match.unexpected == []
    assert str(match) == '4 keys matched, 0 missing, 0 unexpected'


def test_other_keys_and_other_shapes_are_told(model):
    state = model.state_dict()
    state['head.weight'] = state.pop('neck.bias')
    state['backbone.weight'] = torch.zeros(4, 1, 1, 1)
    match = match_keys(model, state)
    assert sorted(match.matched) == ['backbone.bias', 'neck.weight']
    assert match.missing == ['backbone.weight', 'neck.bias']
    assert match.unexpected == ['backbone.weight', 'head.weight']
    assert match.resized == {'backbone.weight': ((4, 1, 1, 1), (4, 3, 1, 1))}


def test_quantizers_do_not_count(model):
    state = model.state_dict()
    convert_(model)
    assert sorted(match_keys(model, state).matched) == KEYS
    converted = match_keys(model, model.state_dict())
    assert sorted(converted.matched) == KEYS and not converted.unexpected


@pytest.mark.parametrize('names, text', [
    ([], '0'),
    (['a'], '1 (a)'),
    (['a', 'b', 'c'], '3 (a, b, c)'),
    (['a', 'b', 'c', 'd'], '4 (a, b, c, ...)'),
])
def test_a_few_names_are_shown(names, text):
    assert some(names) == text
