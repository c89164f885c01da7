import pytest
from mmdet.models import RetinaNet
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from lcq_mmdet import LCQDampeningHook, LCQError, apply_lcq
from lcq_mmdet.conversion.model import float_config
from lcq_mmdet.quantization.layers import lcq_layers


def build(model):
    init_default_scope('mmdet')
    return MODELS.build(model)


def test_result_is_of_the_float_class_and_keys(lcq_config, tiny_config):
    model, float_model = build(lcq_config.model), build(tiny_config.model)
    assert type(model) is RetinaNet
    keys = [key for key in model.state_dict() if '_quantizer.' not in key]
    assert keys == list(float_model.state_dict())


def test_backbone_and_neck_are_quantized_and_the_head_is_not(lcq_config):
    model = build(lcq_config.model)
    names = [name for name, _ in lcq_layers(model)]
    assert len(names) == 28
    assert {name.split('.')[0] for name in names} == {'backbone', 'neck'}
    left = model.lcq_summary.left_float
    assert set(left.values()) == {'not in modules'}
    assert all(name.startswith('bbox_head') for name in left)


@pytest.mark.parametrize('given, built', [
    (dict(), (-1, False)),
    (dict(frozen_stages=2), (2, False)),
    (dict(frozen_stages=None), (1, False)),
    (dict(norm_eval=None), (-1, True)),
])
def test_frozen_stages_and_norm_eval(lcq_config, given, built):
    lcq_config.model.backbone.update(frozen_stages=1, norm_eval=True)
    backbone = build(dict(lcq_config.model, **given)).backbone
    assert (backbone.frozen_stages, backbone.norm_eval) == built


@pytest.mark.parametrize('given, told', [
    (dict(), 'frozen_stages=1 becomes -1, norm_eval=True becomes False'),
    (dict(norm_eval=None), 'frozen_stages=1 becomes -1, as'),
    (dict(frozen_stages=None, norm_eval=None), None),
])
def test_changes_of_the_backbone_are_told(lcq_config, given, told, caplog):
    logger = MMLogger.get_instance('changes')
    logger.addHandler(caplog.handler)
    lcq_config.model.backbone.update(frozen_stages=1, norm_eval=True)
    build(dict(lcq_config.model, **given))
    lines = [r.message for r in caplog.records if 'becomes' in r.message]
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]


def test_default_trains_all_but_the_quantizer_of_the_image(lcq_config):
    lcq_config.model.backbone.update(frozen_stages=1, norm_eval=True)
    model = build(lcq_config.model).train()
    image = model.backbone.conv1.act_quantizer
    frozen = [p for p in model.backbone.parameters() if not p.requires_grad]
    assert {id(p) for p in frozen} == {id(p) for p in image.parameters()}


def test_unknown_float_type_is_named(lcq_config):
    lcq_config.model.float_type = 'RetinaNot'
    with pytest.raises(LCQError, match="float_type='RetinaNot': no such"):
        build(lcq_config.model)


def test_apply_lcq_does_what_the_mix_in_does(tiny_config, tmp_path):
    base = tmp_path / 'base.py'
    tiny_config.dump(base)
    mix_in = tmp_path / 'mix_in.py'
    mix_in.write_text('''
_base_ = './base.py'
model = dict(type='LCQModel', float_type=_base_.model.type, bits=3)
default_hooks = dict(lcq=dict(type='LCQHook'))
optim_wrapper = dict(constructor='LCQOptimWrapperConstructor')
''')
    applied = apply_lcq(tiny_config, bits=3)
    assert applied.to_dict() == dict(
        Config.fromfile(mix_in).to_dict(), work_dir=tiny_config.work_dir)


def test_apply_lcq_does_not_change_its_argument(tiny_config):
    before = tiny_config.to_dict()
    apply_lcq(tiny_config)
    assert tiny_config.to_dict() == before


@pytest.mark.parametrize('optimizer, decay', [
    (dict(type='SGD', lr=0.1), 0),
    (dict(type='AdamW', lr=0.1), 0.01),
    (dict(type='AdamW', lr=0.1, weight_decay=0.3), 0.3),
])
def test_decay_of_quantizers_is_none_whatever_the_optimizer(
        tiny_config, optimizer, decay):
    tiny_config.optim_wrapper.optimizer = optimizer
    cfg = apply_lcq(tiny_config)
    assert tiny_config.optim_wrapper.optimizer == optimizer
    model = build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    decays = {id(p): group['weight_decay'] for group in groups
              for p in group['params']}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert decays[id(parameter)] == (
                0 if '_quantizer.' in name else decay), name


def test_apply_lcq_again_changes_what_is_given(lcq_config):
    cfg = apply_lcq(lcq_config, bits=None, weight_bits=2, exclude=['neck'])
    cfg = apply_lcq(cfg, bits=3)
    assert cfg.model.bits == 3 and 'weight_bits' not in cfg.model
    assert cfg.model.exclude == ['neck']
    assert cfg.model.float_type == 'RetinaNet'


@pytest.mark.parametrize('options, message', [
    (dict(bits=16), 'bits=16: must be an integer from 2 to 8'),
    (dict(quantiser='lcq'), "quantiser='lcq': no such option"),
    (dict(init='best'), "init='best': must be one of"),
])
def test_apply_lcq_names_mistakes(tiny_config, options, message):
    with pytest.raises(LCQError, match=message):
        apply_lcq(tiny_config, **options)


def test_apply_lcq_needs_a_model():
    with pytest.raises(LCQError, match='model.type'):
        apply_lcq(Config(dict(model=dict())))


OPTIONS = dict(weight_bits=3, act_bits=4, exclude=['neck'], init='mse',
               frozen_stages=None, first_layer_bits=None)


def test_float_config_undoes_apply_lcq(tiny_config):
    before = tiny_config.to_dict()
    quantized = apply_lcq(tiny_config, bits=None, **OPTIONS)
    given = quantized.to_dict()
    assert float_config(quantized).to_dict() == before
    assert quantized.to_dict() == given
    assert float_config(tiny_config).to_dict() == before
    again = apply_lcq(float_config(quantized), bits=None, **OPTIONS)
    assert again.to_dict() == given


def test_float_config_keeps_settings_of_the_optimizer(tiny_config):
    own = dict(custom_keys={'backbone': dict(lr_mult=0.1)}, norm_decay_mult=0.)
    tiny_config.optim_wrapper.paramwise_cfg = own
    before = tiny_config.to_dict()
    assert float_config(apply_lcq(tiny_config)).to_dict() == before


def test_float_config_drops_our_hooks_and_no_others(lcq_config):
    others = dict(lcq_config.default_hooks)
    del others['lcq']
    for key, name in dict(
            lcq_distill='LCQDistillHook', lcq_monitor='LCQMonitorHook',
            lcq_precise_bn='LCQPreciseBNHook', lcq_damp=LCQDampeningHook,
            none=None).items():
        lcq_config.default_hooks[key] = name and dict(type=name)
    lcq_config.custom_hooks = [
        dict(type='lcq_mmdet.LCQMonitorHook'), dict(type='EMAHook')]
    cfg = float_config(lcq_config)
    assert cfg.default_hooks == dict(others, none=None)
    assert cfg.custom_hooks == [dict(type='EMAHook')]


def test_float_config_of_a_config_written_as_quantized(tmp_path):
    path = tmp_path / 'quantized.py'
    path.write_text("""
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
model = dict(type='LCQModel', float_type=_base_.model.type, bits=2,
             overrides={'neck': dict(bits=8)})
default_hooks = dict(lcq=dict(type='LCQHook', num_batches=1))
""")
    cfg = float_config(Config.fromfile(path))
    published = Config.fromfile(path).model
    assert cfg.model.type == 'RetinaNet' and 'lcq' not in cfg.default_hooks
    assert cfg.model.backbone == published.backbone
    assert not {'bits', 'overrides', 'float_type'} & cfg.model.keys()
    assert type(build(cfg.model)) is RetinaNet


def test_config_that_imports_nothing_imports_the_package():
    cfg = apply_lcq(Config(dict(model=dict(type='RetinaNet'))))
    assert cfg.custom_imports.imports == ['lcq_mmdet']
