"""Input quantizers of their own for each level of a feature pyramid."""
import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from exporting import build, make_config, make_model, outputs
from mmengine.runner import Runner, load_checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint
from training import state_of

from lcq_mmdet import LCQError, apply_lcq, convert_
from lcq_mmdet.export import export_packed
from lcq_mmdet.quantization.calibration import (check_reached, initialize_,
                                                observe)
from lcq_mmdet.quantization.layers import lcq_layers
from lcq_mmdet.quantization.pyramid import LevelQuantizers
from lcq_mmdet.report.cost import layer_bytes

HEAD = dict(modules=('backbone', 'neck', 'bbox_head'), per_level=True)
SCALES = (1., 10., 100.)


class Prior:
    num_levels = len(SCALES)


class Head(nn.Module):
    """A convolution for all levels, and one for each."""

    def __init__(self, checkpointed=False):
        super().__init__()
        self.prior_generator = Prior()
        self.shared = nn.Conv2d(2, 3, 1)
        self.own = nn.ModuleList(nn.Conv2d(2, 3, 1) for _ in SCALES)
        self.act = nn.ReLU()
        self.checkpointed = checkpointed

    def forward(self, feats):
        shared = self.shared
        if self.checkpointed:
            shared = partial(checkpoint, shared, use_reentrant=False)
        return [
            self.act(shared(x) + own(x)) for own, x in zip(self.own, feats)
        ]


def make_head(**options):
    model = nn.Module()
    model.stem = nn.Conv2d(3, 2, 1)
    model.bbox_head = Head(options.pop('checkpointed', False))
    options = {'modules': ['bbox_head'], 'bits': 4, 'last_layer_bits': None,
               'overrides': {'bbox_head.shared': dict(per_level=True)},
               **options}
    convert_(model, **options)
    return model.bbox_head


def maps():
    return [scale * torch.randn(2, 2, 4, 4) for scale in SCALES]


def calibrated(**options):
    head = make_head(**options)
    with observe(head) as observations:
        head(maps())
        head(maps())
    check_reached(observations)
    initialize_(head, observations)
    return head


def test_each_level_is_quantized_by_its_own():
    head = calibrated().eval()
    levels = head.shared.act_quantizer.levels()
    clips = [float(level.clip.detach()) for level in levels]
    for clip, scale in zip(clips, SCALES):
        assert .5 * scale < clip < 10 * scale
    weight = head.shared.quantized_weight()
    feats = maps()
    for _ in range(2):
        for own, level, x, y in zip(head.own, levels, feats, head(feats)):
            torch.testing.assert_close(
                y, (torch.conv2d(level(x), weight, head.shared.bias) +
                    own(x)).relu())


def test_other_layers_have_one():
    head = make_head()
    assert [type(layer.act_quantizer) is LevelQuantizers
            for _, layer in lcq_layers(head)] == [True, False, False, False]
    assert [name for name, _ in head.shared.quantizers()] == [
        'act_quantizer.level0_quantizer', 'act_quantizer.level1_quantizer',
        'act_quantizer.level2_quantizer', 'weight_quantizer'
    ]
    assert [name for name, _ in head.own[0].quantizers()] == [
        'act_quantizer', 'weight_quantizer'
    ]


def test_copies_count_for_themselves():
    head = calibrated()
    other = copy.deepcopy(head)
    feats = maps()
    expected = head(feats)
    with pytest.raises(AttributeError):
        head([*feats[:1], None])
    for one, two, three in zip(expected, other(feats), head(feats)):
        assert torch.equal(one, two) and torch.equal(one, three)


def test_detector_may_call_the_forward_of_its_head():
    cfg = make_config(**HEAD)
    model = make_model(cfg)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one, two = (model(image, mode='tensor')[0] for _ in range(2))
        three = model.bbox_head(model.extract_feat(image))[0]
    for level in zip(one, two, three):
        assert torch.equal(level[0], level[1])
        assert torch.equal(level[0], level[2])


def test_every_level_learns():
    head = calibrated()
    sum(y.sum() for y in head(maps())).backward()
    for name, parameter in head.shared.named_parameters():
        assert parameter.grad is not None, name


def test_state_comes_back():
    head = calibrated()
    state = head.state_dict()
    assert 'shared.act_quantizer.level2_quantizer.clip' in state
    other = make_head()
    other.load_state_dict(state)
    assert other.shared.act_quantizer.is_initialized
    feats = maps()
    for one, two in zip(head(feats), other(feats)):
        assert torch.equal(one, two)


def test_tables_of_all_levels_take_space():
    shared, plain = make_head(), make_head(overrides={})
    assert layer_bytes(shared.shared) - layer_bytes(plain.shared) == 2 * 16 * 4


@pytest.mark.parametrize('how', ['checkpointing', 'calls'])
def test_more_calls_than_levels_are_refused(how):
    head = calibrated(checkpointed=how == 'checkpointing')
    with pytest.raises(LCQError, match='^per_level=True: a layer with 3 level'
                       ) as info:
        # As after a neck; what starts a graph is not computed again.
        feats = head([x.requires_grad_().clone() for x in maps()])
        if how == 'calls':
            head.shared(maps()[0])
        sum(y.sum() for y in feats).backward()
    assert '\n' not in str(info.value)


def test_layer_that_is_called_for_one_level_is_refused():
    head = make_head(overrides={'bbox_head': dict(per_level=True)})
    with observe(head) as observations:
        head(maps())
    with pytest.raises(LCQError, match=r'did not reach 6 \(own.0.act_quantiz'
                       r'er.level1_quantizer, .*set per_level=False for them'):
        check_reached(observations)


@pytest.mark.parametrize('options, message', [
    (dict(modules=['stem'], per_level=True, overrides={}),
     "^per_level=True: of the layers .* such as 'bbox_head' of bbox_head$"),
    (dict(overrides={'bbox_head.shared': dict(per_level=3)}),
     r"^overrides\['bbox_head.shared'\].per_level=3: must be True or False"),
    (dict(per_level='yes'), "^per_level='yes': must be True or False"),
])
def test_bad_input_is_told(options, message):
    with pytest.raises(LCQError, match=message):
        make_head(**options)


def test_packed_detector_computes_the_same(tmp_path):
    path = str(tmp_path / 'model.safetensors')
    cfg = make_config(**HEAD)
    model = make_model(cfg)
    levels = model.bbox_head.cls_convs[0].conv.act_quantizer.levels()
    assert len(levels) == 5
    export_packed(model, path, cfg.to_dict())
    reloaded = build(cfg)
    load_checkpoint(reloaded, path)
    for one, two in zip(outputs(reloaded), outputs(model)):
        assert torch.equal(one, two)
    with pytest.raises(LCQError, match='does not fit the config'):
        load_checkpoint(build(make_config(modules=HEAD['modules'])), path)


def test_graph_of_a_detector_is_refused(tmp_path):
    pytest.importorskip('onnx')
    from lcq_mmdet.export.graphs import export_onnx
    cfg = make_config(**HEAD)
    with pytest.raises(LCQError, match='bbox_head.cls_convs.0.conv: per_level'
                       '=True cannot be exported to ONNX'):
        export_onnx(make_model(cfg), str(tmp_path / 'x.onnx'), cfg.to_dict())


def test_batch_norm_of_each_level_is_a_matter_of_config(tiny_config,
                                                        tmp_path):
    tiny_config.model.bbox_head.update(
        type='RetinaSepBNHead', num_ins=5, norm_cfg=dict(type='BN'))
    cfg = apply_lcq(tiny_config, bits=4, **HEAD)
    cfg.default_hooks.lcq.num_batches = 1
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    assert 'paramwise_cfg' not in cfg.optim_wrapper
    float_model = build(tiny_config)
    cfg.load_from = str(tmp_path / 'float.pth')
    torch.save(dict(state_dict=float_model.state_dict(), meta={}),
               cfg.load_from)
    runner = Runner.from_cfg(cfg)
    runner.train()
    head = runner.model.bbox_head
    convs = [level[0].conv for level in head.cls_convs]
    assert all(conv is convs[0] for conv in convs)
    assert len(convs[0].act_quantizer.levels()) == 5
    means = [level[0].bn.running_mean for level in head.cls_convs]
    assert len(means) == 5 and all(mean.any() for mean in means)
    assert not torch.equal(means[0], means[4])
    assert 'val/coco/bbox_mAP' in runner.message_hub.log_scalars


def test_training_learns_monitors_and_evaluates(lcq_config):
    cfg = apply_lcq(lcq_config, bits=3, **HEAD)
    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = None
    cfg.default_hooks.lcq_monitor = dict(type='LCQMonitorHook', interval=2)
    runner = Runner.from_cfg(cfg)
    runner.train()
    state = state_of(f'{cfg.work_dir}/epoch_1.pth')
    clips = [
        float(state['bbox_head.cls_convs.0.conv.act_quantizer.'
                    f'level{level}_quantizer.clip']) for level in range(5)
    ]
    assert len(set(clips)) == 5
    theta = ('bbox_head.reg_convs.0.conv.act_quantizer.level4_quantizer.'
             'theta')
    assert state[theta].any()
    rates = {
        id(parameter): group['lr']
        for group in runner.optim_wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    own = dict(runner.model.named_parameters())
    assert rates[id(own[theta])] == pytest.approx(
        10 * rates[id(own['bbox_head.cls_convs.0.conv.weight'])])
    scalars = next(Path(cfg.work_dir).glob('*/vis_data/scalars.json'))
    assert ('lcq/bbox_head.cls_convs.0.conv.act_quantizer.level4_quantizer/'
            'clip') in scalars.read_text()
    # A run that has its values fits none anew.
    cfg.load_from, cfg.experiment_name = f'{cfg.work_dir}/epoch_1.pth', 'more'
    again = Runner.from_cfg(cfg)
    again.test()
    for key, value in again.model.state_dict().items():
        assert torch.equal(value, state[key]), key
