"""Generated wrong settings: each is refused in one line that names its key.

LCQ_EXAMPLES=10000 runs as many examples.
"""
import copy
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from lcq_mmdet import LCQError, LCQModel, apply_lcq, convert_
from lcq_mmdet.quantization.config import (INITS, QUANTIZERS, SIGNED,
                                           WEIGHT_NORMS)
from lcq_mmdet.quantization.layers import lcq_layers

NUM_EXAMPLES = int(os.environ.get('LCQ_EXAMPLES', 500))
CHOICES = dict(quantizer=QUANTIZERS, init=INITS, weight_norm=WEIGHT_NORMS,
               signed_weight=SIGNED, signed_act=SIGNED)
BITS = ('bits', 'weight_bits', 'act_bits')
END_BITS = ('first_layer_bits', 'last_layer_bits')


@MODELS.register_module()
class BadInputNet(BaseModel):
    """As small as a model with a backbone, a neck and a head can be."""

    def __init__(self, width=2):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1))
        self.neck = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.neck(self.backbone(inputs)).mean((2, 3)))


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-99, 99), st.floats(),
    st.text(max_size=5), st.binary(max_size=3), st.just(object),
    st.complex_numbers(max_magnitude=9))
anything = st.one_of(
    scalars, st.lists(scalars, max_size=3),
    st.dictionaries(st.text(max_size=3), scalars, max_size=2),
    st.tuples(scalars))


def is_bits(value):
    return type(value) is int and 2 <= value <= 8


not_bits = anything.filter(lambda v: not is_bits(v))
not_text = anything.filter(lambda v: not isinstance(v, str))
# No name of the model matches these.
no_match = st.text('abcxyz.*?[]_0', min_size=1, max_size=8).filter(
    lambda t: not re.search(r'\*|\?|\[|back|neck|head', t))


def is_pattern(value):
    return isinstance(value, str) and value != ''


@st.composite
def wrong_settings(draw):
    """A setting of a layer that is wrong, and the key to name."""
    kind = draw(st.sampled_from(
        ['bits', 'out_bits', 'choice', 'intervals', 'clip', 'switch',
         'unknown']))
    if kind == 'bits':
        key = draw(st.sampled_from(BITS))
        return key, draw(not_bits)
    if kind == 'out_bits':
        return 'out_bits', draw(not_bits.filter(lambda v: v is not None))
    if kind == 'choice':
        key = draw(st.sampled_from(sorted(CHOICES)))
        return key, draw(anything.filter(
            lambda v: not (isinstance(v, str) and v in CHOICES[key])))
    if kind == 'intervals':
        return 'num_intervals', draw(anything.filter(
            lambda v: not (type(v) is int and v >= 2)))
    if kind == 'clip':
        return 'init_clip', draw(anything.filter(
            lambda v: not (type(v) in (int, float) and 0 < v < float('inf'))))
    if kind == 'switch':
        return 'per_level', draw(
            anything.filter(lambda v: not isinstance(v, bool)))
    key = draw(st.text('abcdefgh_', min_size=1, max_size=12).filter(
        lambda t: t not in ('bits', )))
    return key, draw(anything)


@st.composite
def wrong_options(draw):
    """Options with one mistake in them, and what the message has to name."""
    kind = draw(st.sampled_from(
        ['setting', 'ends', 'patterns', 'pattern', 'overrides', 'override',
         'contradiction', 'backbone']))
    if kind == 'setting':
        # To apply_lcq, bits=None says that there are others.
        key, value = draw(
            wrong_settings().filter(lambda pair: pair != ('bits', None)))
        return {key: value}, key
    if kind == 'ends':
        key = draw(st.sampled_from(END_BITS))
        return {key: draw(not_bits.filter(lambda v: v is not None))}, key
    if kind == 'patterns':
        key = draw(st.sampled_from(['modules', 'exclude']))
        wrong = anything.filter(lambda v: v is not None and not (
            isinstance(v, (list, tuple)) and all(map(is_pattern, v))))
        return {key: draw(wrong)}, key
    if kind == 'pattern':
        key = draw(st.sampled_from(['modules', 'exclude']))
        return {key: ['backbone', draw(no_match)]}, key
    if kind == 'overrides':
        wrong = anything.filter(lambda v: v is not None
                                and not isinstance(v, dict))
        return {'overrides': draw(wrong)}, 'overrides'
    if kind == 'override':
        if draw(st.booleans()):
            wrong = anything.filter(lambda v: not isinstance(v, dict))
            return {'overrides': {'neck': draw(wrong)}}, 'overrides'
        pattern = draw(st.sampled_from(['neck', 'backbone.*']))
        key, value = draw(wrong_settings())
        return {'overrides': {pattern: {key: value}}}, key
    if kind == 'contradiction':
        return draw(st.sampled_from([
            ({'modules': ['neck'], 'exclude': ['neck']}, 'modules'),
            ({'exclude': ['*']}, 'modules'),
            ({'modules': []}, 'modules'),
            ({'bits': 5, 'out_bits': 4}, 'out_bits'),
            ({'bits': 3, 'out_bits': 6}, 'backbone.0.out_bits'),
            ({'overrides': {'head': dict(bits=8)}}, 'overrides'),
            ({'overrides': {'neck': dict(bits=8)}, 'exclude': ['neck']},
             'overrides'),
            ({'overrides': {'': dict(bits=8)}}, 'overrides'),
            ({'overrides': {1: dict(bits=8)}}, 'overrides'),
            ({'overrides': {'necc': dict(bits=8)}}, 'overrides'),
        ]))
    key = draw(st.sampled_from(['frozen_stages', 'norm_eval']))
    return {key: draw(anything.filter(
        lambda v: v is not None and not (
            isinstance(v, bool) if key == 'norm_eval' else type(v) is int
            and v >= -1)))}, key


def check(error, key):
    message = str(error.value)
    assert '\n' not in message
    assert key in message


@settings(max_examples=NUM_EXAMPLES)
@given(wrong_options())
def test_wrong_option_is_named(wrong):
    options, key = wrong
    given_options = copy.deepcopy(options)
    cfg = Config(dict(model=dict(type='BadInputNet')))
    with pytest.raises(LCQError) as error:
        quantized = apply_lcq(cfg, **options)
        # What one sees only with the model at hand.
        MODELS.build(quantized.model)
    check(error, key)
    with pytest.raises(LCQError) as error:
        LCQModel('BadInputNet', **options)
    check(error, key)
    if key not in ('frozen_stages', 'norm_eval'):
        model = BadInputNet()
        with pytest.raises(LCQError) as error:
            convert_(model, **options)
        check(error, key)
        assert not list(lcq_layers(model))
    assert repr(options) == repr(given_options)


@settings(max_examples=200)
@given(st.text('abcdefgh_', min_size=1, max_size=8), anything)
def test_wrong_key_of_the_model_is_named(key, value):
    with pytest.raises(LCQError, match=key):
        LCQModel('BadInputNet', **{key: value})


@settings(max_examples=20)
@given(anything)
def test_wrong_type_of_the_model_is_named(value):
    with pytest.raises(LCQError, match='float_type'):
        LCQModel(value)
    cfg = Config(dict(model=dict(type='LCQModel')))
    with pytest.raises(LCQError, match='float_type'):
        MODELS.build(cfg.model)


good_settings = st.fixed_dictionaries({}, optional=dict(
    bits=st.integers(2, 8), weight_bits=st.integers(2, 8),
    act_bits=st.integers(2, 8), num_intervals=st.integers(2, 32),
    init_clip=st.floats(0.1, 10), out_bits=st.sampled_from([None, 8]),
    **{key: st.sampled_from(values) for key, values in CHOICES.items()}))


@settings(max_examples=200)
@given(good_settings, st.sampled_from([['*'], ['backbone'], None]),
       st.sampled_from([{}, {'backbone': dict(bits=8)},
                        {'*': dict(init='mse'), '*.1': dict(act_bits=2)}]))
def test_right_options_are_accepted(options, modules, overrides):
    if options.get('quantizer') == 'lsq':
        # It has none of these.
        for key in ('init', 'weight_norm', 'signed_weight', 'signed_act'):
            options.pop(key, None)
        overrides = {'backbone': dict(bits=8)} if overrides else {}
    model = LCQModel('BadInputNet', modules=modules, overrides=overrides,
                     **options)
    assert list(lcq_layers(model))
