import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from torch import nn

from lcq_mmdet import (ConversionConfig, LCQConv2d, LCQError, QuantizerConfig,
                       convert_)
from lcq_mmdet.quantization.layers import lcq_layers


def make_model():
    """A model with each kind of layer that conversion has to tell apart."""
    return nn.ModuleDict(
        dict(
            backbone=nn.ModuleDict(
                dict(
                    stem=nn.Conv2d(3, 8, 3),
                    block=ConvModule(8, 8, 3, norm_cfg=dict(type='BN')),
                    wrapped=MMCVConv2d(8, 8, 1),
                    depthwise=MMCVConv2d(8, 8, 3, groups=8),
                    standardized=ConvModule(
                        8, 8, 3, conv_cfg=dict(type='ConvWS')),
                    offsets=ConvModule(8, 8, 3, conv_cfg=dict(type='DCNv2')),
                    switched=ConvModule(8, 8, 3, conv_cfg=dict(type='SAC')),
                    spectral=ConvModule(8, 8, 3, with_spectral_norm=True),
                    up=nn.ConvTranspose2d(8, 8, 2),
                    linear=nn.Linear(8, 8),
                    attention=nn.MultiheadAttention(8, 2),
                    cross=nn.MultiheadAttention(8, 2, kdim=4),
                    table=nn.Embedding(8, 8))),
            neck=nn.ModuleDict(dict(lateral=nn.Conv2d(8, 8, 1))),
            head=nn.ModuleDict(dict(out=nn.Conv2d(8, 4, 1)))))


def bits_of(model):
    return {
        name: (layer.weight_quantizer.bits, layer.act_quantizer.bits)
        for name, layer in lcq_layers(model)
    }


def test_exact_set_of_layers_is_replaced():
    summary = convert_(make_model())
    assert summary.quantized == (
        'backbone.stem', 'backbone.block.conv', 'backbone.wrapped',
        'backbone.depthwise', 'backbone.standardized.conv',
        'backbone.offsets.conv', 'backbone.offsets.conv.conv_offset',
        'backbone.switched.conv.switch', 'backbone.switched.conv.pre_context',
        'backbone.switched.conv.post_context', 'backbone.up',
        'backbone.linear', 'neck.lateral')
    attention = 'MultiheadAttention reads its weight past its forward'
    assert summary.left_float == {
        'backbone.switched.conv': 'SAConv2d is of no kind that can be '
        'quantized',
        'backbone.spectral.conv': 'its weight is computed by a hook',
        'backbone.attention.in_proj_weight': attention,
        'backbone.attention.out_proj': attention,
        'backbone.cross.q_proj_weight': attention,
        'backbone.cross.k_proj_weight': attention,
        'backbone.cross.v_proj_weight': attention,
        'backbone.cross.out_proj': attention,
        'head.out': 'not in modules',
    }


def test_summary_prints_every_layer_left_in_float():
    summary = convert_(make_model())
    assert '13 layers quantized, 9 left in float' in str(summary)
    assert 'head.out' in str(summary)


def test_model_without_backbone_and_neck_is_refused():
    model = nn.ModuleDict(dict(stem=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 2)))
    with pytest.raises(LCQError, match="to quantize, of 'stem', 'fc', or"):
        convert_(model)
    assert convert_(model, modules=['*']).quantized == ('stem', 'fc')


def test_backbones_at_any_depth_are_quantized():
    model = nn.ModuleDict(dict(student=make_model(), teacher=make_model()))
    summary = convert_(model)
    assert len(summary.quantized) == 26
    assert {'student.head.out', 'teacher.head.out'} < summary.left_float.keys()


def test_model_that_is_a_layer_is_refused():
    with pytest.raises(LCQError, match='the model is this layer'):
        convert_(nn.Conv2d(3, 8, 3), modules=['*'])


def test_first_layer_has_bits_of_its_own():
    model = make_model()
    convert_(model, bits=3)
    assert bits_of(model)['backbone.stem'] == (8, 8)
    assert bits_of(model)['neck.lateral'] == (3, 3)


@pytest.mark.parametrize('options', [
    dict(first_layer_bits=None),
    dict(overrides={'backbone.stem': dict(bits=4)}),
])
def test_first_layer_can_be_as_any_other(options):
    model = make_model()
    convert_(model, bits=4, **options)
    assert bits_of(model)['backbone.stem'] == (4, 4)


def test_first_layer_is_the_models_not_the_modules():
    model = make_model()
    convert_(model, modules=['neck'], bits=2)
    assert bits_of(model) == {'neck.lateral': (2, 2)}


def test_exclude_says_why():
    summary = convert_(make_model(), exclude=['backbone.w*'])
    assert summary.left_float['backbone.wrapped'] == (
        "excluded by 'backbone.w*'")


def test_later_overrides_win():
    model = make_model()
    convert_(
        model,
        overrides={
            'backbone': dict(weight_bits=2),
            'backbone.wrapped': dict(bits=5)
        })
    assert bits_of(model)['backbone.block.conv'] == (2, 4)
    assert bits_of(model)['backbone.wrapped'] == (5, 5)


def test_layer_under_two_names_stays_one_layer():
    model = make_model()
    model['neck']['again'] = model['neck']['lateral']
    convert_(model)
    assert isinstance(model['neck']['again'], LCQConv2d)
    assert model['neck']['again'] is model['neck']['lateral']


def test_float_state_dict_keys_are_kept():
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    convert_(model)
    after = model.state_dict()
    assert list(before) == [k for k in after if '_quantizer.' not in k]
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize('options, message', [
    (dict(modules=['bacbone']),
     "modules: the pattern 'bacbone' matches no layer; did you mean "
     "'backbone'"),
    (dict(exclude=['neck.x']), "exclude: the pattern 'neck.x' matches no "),
    (dict(overrides={'rpn': dict(bits=8)}),
     "overrides: the pattern 'rpn' matches no layer"),
    (dict(overrides={'neck': dict(bits=9)}),
     r"overrides\['neck'\].bits=9: must be an integer from 2 to 8"),
    (dict(overrides={'neck': dict(width=9)}),
     r"overrides\['neck'\].width=9: no such option"),
    (dict(modules='backbone'), "modules='backbone': must be a list"),
    (dict(modules=['backbone.attention']),
     'no layer to quantize in them: MultiheadAttention reads'),
    (dict(modules=[]), 'there is no layer to quantize in them: it is empty'),
    (dict(modules=['neck'], exclude=['neck']), "excluded by 'neck'"),
    (dict(overrides={'head': dict(bits=8)}), 'covers only layers that stay'),
    (dict(first_layer_bits=16), 'first_layer_bits=16: must be an integer'),
    (dict(colour='red'), "colour='red': no such option"),
])
def test_mistake_is_named_and_nothing_is_converted(options, message):
    model = make_model()
    with pytest.raises(LCQError, match=message):
        convert_(model, **options)
    assert not list(lcq_layers(model))


def test_converting_twice_is_refused():
    model = make_model()
    convert_(model)
    with pytest.raises(LCQError, match='converted already'):
        convert_(model)


def test_config_does_what_flat_keys_do():
    options = dict(bits=3, exclude=['neck'], overrides={
        'backbone': dict(act_bits=5)}, weight_norm='channel')
    config = ConversionConfig.from_options(options)
    one, other, again = make_model(), make_model(), make_model()
    assert (convert_(one, config).quantized ==
            convert_(other, **options).quantized)
    assert bits_of(one) == bits_of(other)
    convert_(again, **config.to_options())
    assert bits_of(again) == bits_of(one)
    assert config.default == QuantizerConfig(3, 3, weight_norm='channel')


def test_config_beside_flat_keys_is_refused():
    with pytest.raises(LCQError, match='bits: is given beside config'):
        convert_(make_model(), ConversionConfig(), bits=3)
