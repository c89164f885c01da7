"""Graphs from images to boxes: what mmdet finds, family by family."""
import copy
import re
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import onnx
import pytest
import torch
from mmcv.transforms import LoadImageFromFile, Resize
from mmdet.datasets import CocoDataset
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from test_families import FAMILIES, RESNET, build, make_config, settle_
from torch import nn

from lcq_mmdet import LCQError
from lcq_mmdet.export.end2end.assembly import NETWORK, Assembly
from lcq_mmdet.export.end2end.check import after_network, prepare
from lcq_mmdet.export.end2end.metadata import dataset_meta
from lcq_mmdet.export.end2end.preprocessing import (LIMITS, PREPARED, Pipeline,
                                                    find_test_data,
                                                    preprocessing,
                                                    read_pipeline)
from lcq_mmdet.export.graphs.boxes import box_layers
from lcq_mmdet.export.graphs.builder import with_outputs
from lcq_mmdet.export.graphs.heads import dense_head
from lcq_mmdet.export.graphs.layers import float_layers
from lcq_mmdet.export.graphs.network import (DetectorNetwork, dense_outputs,
                                             features)
from lcq_mmdet.export.graphs.session import Graph
from lcq_mmdet.export.graphs.trace import trace

OUTPUTS = ['dets', 'labels']
SIZES = [(2, 96, 128), (1, 77, 150), (3, 128, 64)]
NAMES = ['retinanet', 'fcos', 'atss', 'gfl', 'rtmdet', 'yolox', 'faster-rcnn',
         'ssdlite', 'yolov3', 'detr', 'detr-sigmoid']
QUERIES = {'num_queries': 25, 'test_cfg.max_per_img': 20}
EXPORTED = {
    **FAMILIES, 'yolov3': ('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', {
        'backbone.widen_factor': 0.0625,
        'backbone.out_indices': (2, 4, 6),
        'neck.in_channels': [24, 8, 8],
        'neck.out_channels': [6, 6, 6],
        'bbox_head.in_channels': [6, 6, 6],
        'bbox_head.out_channels': [6, 6, 6],
    }),
    'detr': ('detr/detr_r50_8xb2-150e_coco.py', {
        **RESNET, **QUERIES
    }),
    'detr-sigmoid': ('detr/detr_r50_8xb2-150e_coco.py', {
        **RESNET, **QUERIES, 'bbox_head.loss_cls': dict(
            type='FocalLoss', use_sigmoid=True, _delete_=True)
    })
}


@cache
def detector(name):
    """A random detector, what its pipeline does, and its graph."""
    register_all_modules()
    torch.manual_seed(0)
    cfg = make_config(name, Path(mkdtemp()), EXPORTED)
    part = cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg)
    # YOLOX has no limit, whatever the config says.
    part.update(dict(score_thr=0.3, max_per_img=5) if name == 'yolox' else
                dict(score_thr=0.02))
    model = build(cfg)
    if name == 'faster-rcnn':
        # So that its scores differ.
        nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight)
        nn.init.normal_(model.roi_head.bbox_head.fc_reg.weight, 0, 0.3)
    if name == 'ssdlite':
        # mmdet 3.3 looks for it in all heads.
        model.bbox_head.loss_cls = nn.Identity()
    data = model.data_preprocessor(demo_mm_inputs(4, (3, 128, 128)), False)
    model.requires_grad_(False)
    settle_(model, data)
    pipeline = read_pipeline(cfg.test_dataloader.dataset.pipeline)
    network = DetectorNetwork(model.eval())
    graph = Assembly(model, pipeline).assemble(trace(network))
    onnx.checker.check_model(graph, full_check=True)
    return network, pipeline, graph


def differences(found, expected):
    """Boxes that only one of both has, and the number of all."""
    count = total = 0
    for dets, labels, instances in zip(*found, expected):
        real = labels >= 0
        assert not real[real.sum():].any()
        assert not dets[~real].any() and (labels[~real] == -1).all()
        assert (dets[real, 4].diff() <= 0).all()
        rows = torch.cat([dets, labels[:, None]], 1)[real]
        others = torch.cat([
            instances.bboxes, instances.scores[:, None],
            instances.labels[:, None]
        ], 1)
        near = rows.new_tensor([1e-3] * 4 + [1e-4, 0])
        near = near + 1e-5 * others.abs() * (near > 0)
        same = ((rows[:, None] - others).abs() <= near).all(-1)
        count += int((~same.any(0)).sum() + (~same.any(1)).sum())
        total += len(others)
    return count, total


@pytest.mark.parametrize('name, layers', [
    ('retinanet', 'retina_reg'), ('fcos', 'conv_reg'), ('atss', 'atss_reg'),
    ('gfl', 'gfl_reg'), ('rtmdet', r'rtm_reg\.\d'), ('yolov3', ''),
    ('yolox', r'multi_level_conv_reg\.\d'), ('detr', r'fc_reg'),
    ('faster-rcnn', r'rpn_reg|fc_reg'), ('ssdlite', r'reg_convs\.\d\.1'),
])
def test_last_layers_before_boxes_are_found(name, layers):
    network, *_ = detector(name)
    others, _ = float_layers(network.detector)
    found = box_layers(trace(network, others))
    expected = [
        other for other in others
        if re.search(rf'_head\.({layers})$', other)
    ]
    assert sorted(found) == sorted(expected) and bool(layers) == bool(found)


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_network_sees_what_that_of_mmdet_does(name):
    network, pipeline, graph = detector(name)
    names = first_outputs(network)
    inner, *_ = with_outputs(
        graph, [LIMITS, *(f'{NETWORK}/{output}' for output in names)])
    inner = Graph(inner, ['image'], [v.name for v in inner.graph.output][2:])
    for size in SIZES:
        images = torch.randint(256, (*size, 3), dtype=torch.uint8)
        data = prepare(images, network.detector, pipeline)
        limits, *found = inner(images)
        height, width = data['data_samples'][0].img_shape
        assert limits.tolist() == [width, height] * 2
        _, *pooled = network.example(*size[1:])
        expected = network.compute(data['inputs'], *pooled)
        for output, value in zip(names, found):
            unit = expected[output].abs().max()
            assert ((value - expected[output]).abs() <= 1e-3 * unit).all()


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_boxes_are_those_of_mmdet(name):
    """Of noise that the network could have computed."""
    network, pipeline, graph = detector(name)
    names = first_outputs(network)
    after = after_network(graph, names)
    for size in SIZES:
        images = torch.zeros(*size, 3, dtype=torch.uint8)
        data = prepare(images, network.detector, pipeline)
        values = [
            torch.randn_like(value) * (2 if output.startswith('head') else 1)
            for output, value in network.compute(
                data['inputs'], *network.example(*size[1:])[1:]).items()
            if output in names
        ]
        samples = data['data_samples']
        height, width = samples[0].img_shape
        found = after(torch.tensor([width, height] * 2).float(), *values)
        expected = from_maps(network, values, samples)
        count, total = differences(found, expected)
        assert total >= 10 * len(images)
        assert count <= 0.02 * total


def first_outputs(network):
    return [name for name in network.outputs if 'second' not in name]


def from_maps(network, values, samples):
    """Let mmdet find boxes in what the network computed."""
    model, names = network.detector, first_outputs(network)
    values = [value.clone() for value in values]
    found = dense_head(model).predict_by_feat(
        *dense_outputs(names, values),
        batch_img_metas=[sample.metainfo for sample in samples])
    if network.region_heads:
        found = model.roi_head.predict(
            features(names, values), found, samples)
    return found


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('name, part', [
    ('retinanet', 'test_cfg'), ('faster-rcnn', 'rcnn'), ('faster-rcnn', 'rpn')
], ids=['no boxes', 'no boxes of regions', 'no regions'])
@torch.no_grad()
def test_nothing_is_found(name, part, engine):
    pytest.importorskip(engine)
    network, pipeline, _ = detector(name)
    model = copy.deepcopy(network.detector)
    if name == 'retinanet':
        model.bbox_head.test_cfg.score_thr = 1.
    elif part == 'rcnn':
        model.test_cfg.rcnn.score_thr = 1.
    else:
        model.test_cfg.rpn.min_bbox_size = 1e6
    network = DetectorNetwork(model)
    graph = Graph(
        Assembly(model, pipeline).assemble(trace(network)), ['image'], OUTPUTS,
        engine=engine)
    dets, labels = graph(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert dets.shape == (2, 0, 5) and dets.dtype == torch.float32
    assert labels.shape == (2, 0) and labels.dtype == torch.int64


@torch.no_grad()
def test_image_is_smaller_than_strides():
    network, pipeline, graph = detector('retinanet')
    whole = Graph(graph, ['image'], OUTPUTS)
    image = torch.full((1, 1, 3, 3), 200, dtype=torch.uint8)
    dets, labels = whole(image)
    assert (labels >= 0).all() and dets.shape[1] > 0
    assert dets.amax((0, 1))[2] <= 3 and dets.amax((0, 1))[3] <= 1


@pytest.mark.parametrize('image', [
    torch.zeros(1, 64, 64, 3), torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    torch.zeros(64, 64, 3, dtype=torch.uint8)
], ids=['float', 'channels first', 'no batch'])
def test_other_images_are_refused(image):
    whole = Graph(detector('retinanet')[2], ['image'], OUTPUTS)
    with pytest.raises(LCQError, match='^onnxruntime cannot run it with'):
        whole(image)


def test_heads_and_suppression_that_are_not_known_are_refused():
    model = copy.deepcopy(detector('retinanet')[0].detector)
    model.bbox_head.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(LCQError, match=r"^model\.test_cfg\.nms: .*soft_nms"):
        Assembly(model, Pipeline(None, []))
    model.bbox_head.test_cfg.nms = dict(
        type='nms', iou_threshold=0.5, offset=0, score_threshold=0.1)
    with pytest.raises(LCQError, match='nms: .score_threshold. cannot be'):
        Assembly(model, Pipeline(None, []))
    model.bbox_head.test_cfg.update(
        nms=dict(type='nms', iou_threshold=0.5), min_bbox_size=3)
    with pytest.raises(LCQError, match=r'^model\.test_cfg\.min_bbox_size=3: '):
        Assembly(model, Pipeline(None, []))

    class OtherHead(type(model.bbox_head)):

        def predict_by_feat(self, *args, **kwargs):
            raise NotImplementedError

    model.bbox_head.__class__ = OtherHead
    with pytest.raises(LCQError, match='^OtherHead: .* without --end2end'):
        Assembly(model, Pipeline(None, []))


@pytest.mark.parametrize('transform', [
    dict(type='RandomFlip', prob=1.), dict(type='Pad', pad_val=(1, 2, 3),
                                           size=(8, 8)),
    dict(type='Pad', padding_mode='edge', size=(8, 8)),
    dict(type=Resize, scale=(8, 8), backend='pillow'),
    dict(type='mmdet.LoadImageFromFile', color_type='grayscale'),
    dict(type='LoadImageFromFile', to_float32=True),
], ids=['flip', 'color', 'mode', 'pillow', 'gray', 'float'])
def test_pipelines_that_are_not_known_are_refused(transform):
    model = detector('retinanet')[0].detector
    with pytest.raises(LCQError, match='^--end2end: the test pipeline has'):
        Assembly(model, read_pipeline([transform]))


@pytest.mark.parametrize('kind', ['mmdet.CocoDataset', CocoDataset,
                                  'CocoDataset'])
def test_classes_are_those_of_the_data_set(kind):
    assert dataset_meta(dict(type=kind), {}, 80)['classes'][0] == 'person'
    own = dict(dataset_meta=dict(CLASSES=('cell', )))
    assert dataset_meta(dict(type=kind), own, 1)['classes'] == ('cell', )
    assert dataset_meta(dict(type=kind), {}, 2)['classes'] == ['0', '1']


def test_pipeline_of_data_sets_in_data_sets_is_read():
    pipeline = [dict(type=LoadImageFromFile, to_float32=False),
                dict(type=Resize, scale=(32, 16), keep_ratio=True),
                dict(type='mmdet.PackDetInputs')]
    parts = [dict(type='RepeatDataset', dataset=dict(pipeline=pipeline)),
             dict(ann_file='b.json', pipeline=copy.deepcopy(pipeline))]
    cfg = Config(dict(test_dataloader=dict(
        dataset=dict(type='ConcatDataset', datasets=parts))))
    resize = read_pipeline(find_test_data(cfg)['pipeline']).resize
    assert resize == dict(scale=(32, 16), keep_ratio=True)
    cfg.test_dataloader.dataset.datasets[1].pipeline[1].scale = (64, 64)
    with pytest.raises(LCQError, match='^test_dataloader: .* different'):
        find_test_data(cfg)
    with pytest.raises(LCQError, match='^test_dataloader: is missing'):
        find_test_data(Config(dict(model=dict())))


@pytest.mark.parametrize('pads', [
    [dict(size=(100, 70), pad_val=114)],
    [dict(pad_to_square=True, pad_val=dict(img=(114., 114., 114.)))],
    [dict(size_divisor=16), dict(size=(90, 120), pad_val=3)],
], ids=['size', 'square', 'twice'])
@pytest.mark.parametrize('options', [
    dict(bgr_to_rgb=True, mean=[1., 2., 3.], std=[3., 5., 7.],
         pad_size_divisor=32),
    dict(mean=[128.], std=[2.], pad_size_divisor=8, pad_value=5),
    dict(),
], ids=['colors', 'one mean', 'as is'])
def test_images_are_prepared_as_mmdet_does(pads, options):
    model = SimpleNamespace(data_preprocessor=DetDataPreprocessor(**options))
    pipeline = Pipeline(None, pads)
    prepared = Graph(preprocessing(model.data_preprocessor, pipeline),
                     ['image'], [PREPARED, LIMITS])
    for size in ((2, 50, 75), (1, 64, 96), (1, 130, 40)):
        images = torch.randint(256, (*size, 3), dtype=torch.uint8)
        data = prepare(images, model, pipeline)
        found, limits = prepared(images)
        torch.testing.assert_close(found, data['inputs'])
        height, width = data['data_samples'][0].img_shape
        assert limits.tolist() == [width, height] * 2
