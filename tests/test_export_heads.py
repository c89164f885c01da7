"""Graphs of detectors with masks and with cascades of heads."""
import copy

import onnx
import pytest
import test_families as families
import torch
from exporting import build, make_config, make_model
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import nn

from lcq_mmdet import LCQError, convert_
from lcq_mmdet.export.end2end.regions import check_second_stage
from lcq_mmdet.export.graphs import GraphDetector, export_onnx
from lcq_mmdet.export.graphs.heads import check_supported, region_heads
from lcq_mmdet.export.graphs.network import DetectorNetwork
from lcq_mmdet.quantization.calibration import initialize_, observe

MASKS = dict(
    mask_roi_extractor=dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
        out_channels=16,
        featmap_strides=[4, 8, 16, 32]),
    mask_head=dict(
        type='FCNMaskHead', num_convs=1, in_channels=16, conv_out_channels=16,
        num_classes=10,
        loss_mask=dict(type='CrossEntropyLoss', use_mask=True)))
KINDS = ['mask', 'cascade', 'cascade mask']
INPUTS = {
    'mask': ['image', 'pooled', 'mask_pooled'],
    'cascade': ['image', 'pooled', 'pooled.1'],
    'cascade mask': ['image', 'pooled', 'pooled.1', 'mask_pooled',
                     'mask_pooled.1'],
}


def config_of(kind, **options):
    """A tiny two-stage detector with these heads."""
    cfg = make_config('FasterRCNN', **options)
    model = cfg.model
    model.train_cfg = None
    roi_head = model.roi_head
    if 'mask' in kind:
        model.float_type = 'MaskRCNN'
        roi_head.update(copy.deepcopy(MASKS))
        model.test_cfg.rcnn.mask_thr_binary = 0.5
    if 'cascade' in kind:
        model.float_type = 'CascadeRCNN'
        roi_head.update(
            type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 0.5],
            bbox_head=[copy.deepcopy(roi_head.bbox_head) for _ in range(2)])
    return Config(cfg.to_dict())


@pytest.fixture(scope='module', params=KINDS)
def exported(request, tmp_path_factory):
    """Config, model and graph of each kind."""
    cfg = config_of(request.param)
    model = make_model(cfg)
    path = tmp_path_factory.mktemp('graph') / 'model.onnx'
    export_onnx(model, str(path), cfg.to_dict())
    return request.param, cfg, model, path


def detect(model, image, height, width):
    samples = [
        DetDataSample(metainfo=dict(
            img_shape=(height, width), ori_shape=(height, width),
            batch_input_shape=(height, width), scale_factor=(1., 1.)))
        for _ in image
    ]
    return [sample.pred_instances for sample in model(
        image, samples, mode='predict')]


@torch.no_grad()
def test_graph_finds_what_the_model_finds(exported):
    kind, cfg, model, path = exported
    assert [value.name for value in onnx.load(path).graph.input] == INPUTS[
        kind]
    graph = GraphDetector(copy.deepcopy(model), str(path),
                          cfg.model.to_dict())
    image = torch.randn(2, 3, 64, 96)
    for found, expected in zip(detect(graph, image, 64, 96),
                               detect(model, image, 64, 96)):
        assert len(expected) > 3 and len(found) == len(expected)
        close = (found.bboxes - expected.bboxes).abs() < 1e-2
        assert close.float().mean() > 0.95
        assert ('masks' in expected) == ('mask' in kind)
        if 'mask' in kind:
            assert (found.masks == expected.masks).float().mean() > 0.95


@torch.no_grad()
def test_no_head_is_computed_by_torch(exported):
    """What the heads themselves would compute does not matter."""
    kind, cfg, model, path = exported
    model = copy.deepcopy(model)
    graph = GraphDetector(model, str(path), cfg.model.to_dict())
    image = torch.randn(1, 3, 64, 96)
    before = detect(graph, image, 64, 96)[0]
    for parameter in model.parameters():
        parameter.fill_(float('nan'))
    after = detect(graph, image, 64, 96)[0]
    for key in before.keys():
        assert torch.equal(before[key], after[key])


@torch.no_grad()
def test_masks_are_computed_in_integers(tmp_path):
    cfg = config_of('mask')
    model = make_model(cfg)
    images = DetectorNetwork(model).example(64, 96)[:1]
    export = export_onnx(model, str(tmp_path / 'model.onnx'), cfg.to_dict(),
                         int8='relaxed', images=images)
    assert sorted(export.left_float) == [
        'roi_head.bbox_head.fc_reg', 'roi_head.mask_head.upsample',
        'rpn_head.rpn_reg'
    ]
    assert export.integer_share > 0.8


@torch.no_grad()
def test_boxes_and_masks_are_not_part_of_one_graph(exported):
    kind, _, model, _ = exported
    what = 'CascadeRoIHead' if 'cascade' in kind else 'FCNMaskHead'
    with pytest.raises(LCQError, match=f'^{what}: .* without --end2end'):
        check_second_stage(model.roi_head)


def test_other_heads_are_refused_with_what_to_do():
    model = build(config_of('mask'))
    assert len(region_heads(model)) == 2
    model.roi_head.mask_head = nn.Identity()
    with pytest.raises(LCQError, match='^MaskRCNN with a Identity: cannot be '
                       'exported to ONNX; .* Faster, Mask and Cascade R-CNN. '
                       'A packed file .--out NAME.safetensors. takes any'):
        check_supported(model)
    with pytest.raises(LCQError, match='^Sequential: cannot be exported'):
        check_supported(nn.Sequential())


@pytest.mark.parametrize('exclude', [[], ['neck.deconv_layers.*.conv']])
def test_deformable_layers_are_refused_by_name(tmp_path, exclude):
    """As quantized ones, and as float ones."""
    model = families.build(families.make_config('centernet', tmp_path))
    convert_(model, bits=4, exclude=exclude)
    with torch.no_grad(), observe(model.eval()) as observations:
        model.extract_feat(torch.randn(1, 3, 64, 64))
    initialize_(model, observations)
    with pytest.raises(LCQError, match=r'^neck\.deconv_layers\.0\.conv: '
                       r'.*ModulatedDeformConv2d.*; write a \.safetensors'):
        export_onnx(model, str(tmp_path / 'model.onnx'), {})
    assert not (tmp_path / 'model.onnx').exists()
