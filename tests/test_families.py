"""One detector of each family, narrowed: converted, calibrated, trained."""
import copy

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import MODELS
from torch.nn.modules.batchnorm import _BatchNorm

from lcq_mmdet import apply_lcq
from lcq_mmdet.quantization.calibration import initialize_, observe
from lcq_mmdet.quantization.layers import lcq_layers
from lcq_mmdet.report.cost import count_macs, quantized_share

RESNET = {
    'backbone.depth': 18,
    'backbone.base_channels': 16,
    'backbone.norm_eval': False
}
GROUPED = {**RESNET, 'bbox_head.norm_cfg': dict(type='GN', num_groups=2)}
_CHANNELS = ('in_channels', 'out_channels', 'feat_channels',
             'fc_out_channels', 'conv_out_channels', 'embed_dims',
             'proposal_feature_channel', 'feedforward_channels', 'num_feats',
             'num_deconv_filters')
# Config, and what to change in its model after channels were divided by 16.
FAMILIES = {
    'retinanet': ('retinanet/retinanet_r50_fpn_1x_coco.py', RESNET),
    'fcos': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', GROUPED),
    'atss': ('atss/atss_r50_fpn_1x_coco.py', GROUPED),
    'gfl': ('gfl/gfl_r50_fpn_1x_coco.py', GROUPED),
    'faster-rcnn': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', RESNET),
    'mask-rcnn': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', RESNET),
    'cascade-rcnn': ('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', RESNET),
    'ssdlite': ('ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py', {
        'backbone.widen_factor': 0.0625,
        'neck.in_channels': (8, 1280),
        'neck.out_channels': (8, 1280, 32, 16, 16, 8),
        'bbox_head.in_channels': (8, 1280, 32, 16, 16, 8),
    }),
    'yolox': ('yolox/yolox_s_8xb8-300e_coco.py', {
        'backbone.widen_factor': 0.0625,
        'neck.in_channels': [16, 32, 64],
        'neck.out_channels': 16,
        'bbox_head.in_channels': 16,
        'data_preprocessor.batch_augments': None,
    }),
    'rtmdet': ('rtmdet/rtmdet_s_8xb32-300e_coco.py', {
        'backbone.widen_factor': 0.0625,
        'backbone.deepen_factor': 0.33,
        'neck.in_channels': [16, 32, 64],
        'neck.num_csp_blocks': 1,
    }),
    'centernet': ('centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py', {
        'backbone.base_channels': 4,
        'neck.num_deconv_filters': (16, 8, 8),
        'bbox_head.in_channels': 8,
    }),
    'sparse-rcnn': ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', {
        **RESNET, 'rpn_head.num_proposals': 5
    }),
    'detr': ('detr/detr_r50_8xb2-150e_coco.py', {
        **RESNET, 'num_queries': 5
    }),
    'swin': ('swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py', {
        'backbone.embed_dims': 8,
        'backbone.depths': [1, 1, 1, 2],
        'backbone.num_heads': [1, 2, 2, 4],
        'neck.in_channels': [16, 32, 64],
    }),
}


def narrow(value):
    """Divide channels by 16 and take what needs no group of processes."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(narrow, value))
    if not isinstance(value, dict):
        return value
    for key, item in value.items():
        if key in _CHANNELS:
            many = isinstance(item, (list, tuple))
            value[key] = [n // 16 for n in item] if many else item // 16
        elif key == 'init_cfg':
            value[key] = None
        else:
            value[key] = narrow(item)
    if value.get('type') == 'SyncBN':
        value.type = 'BN'
    if 'num_groups' in value:
        value.num_groups = 2
    if 'nms_pre' in value:
        value.nms_pre = 50
    if 'max_per_img' in value:
        value.max_per_img = 10
    return value


def make_config(name, tmp_path, families=FAMILIES):
    path, changes = families[name]
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f"_base_ = 'mmdet::{path}'")
    cfg = Config.fromfile(leaf)
    cfg.model = narrow(cfg.model)
    cfg.merge_from_dict({f'model.{key}': v for key, v in changes.items()},
                        allow_list_keys=True)
    return cfg


def build(cfg):
    return MODELS.build(copy.deepcopy(cfg.model))


@torch.no_grad()
def settle_(model, data):
    """Give batch normalization the statistics of the data."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.
    model.train()(**data, mode='tensor')


@pytest.mark.parametrize('name', FAMILIES)
def test_family_is_quantized_and_learns(name, tmp_path):
    register_all_modules()
    cfg = make_config(name, tmp_path)
    cfg.model.backbone.pop('frozen_stages', None)
    float_model = build(cfg)
    if name == 'sparse-rcnn':
        # Without it, proposals have negative sizes.
        float_model.rpn_head.init_weights()
    size = 128 if name == 'ssdlite' else 64
    batch = demo_mm_inputs(
        2, (3, size, size), [2, 3], num_classes=5, with_mask='mask' in name,
        use_box_type=True)
    data = float_model.data_preprocessor(copy.deepcopy(batch), False)
    settle_(float_model, data)
    model = build(apply_lcq(cfg, bits=4, modules=['*'], init='mse'))
    assert type(model) is type(float_model)
    match = model.load_state_dict(float_model.state_dict(), strict=False)
    assert not match.unexpected_keys
    assert all('_quantizer.' in key for key in match.missing_keys)

    with observe(model) as observations, count_macs(model) as macs:
        model(**data, mode='tensor')
    assert all(seen.reached for seen in observations.values())
    initialize_(model, observations)
    # What is left are the projections of DETR's and Sparse R-CNN's attention.
    assert quantized_share(model, macs) > (
        0.6 if name in ('detr', 'sparse-rcnn') else 0.99)

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    for key, parameter in model.named_parameters():
        if '_quantizer.' in key and parameter.requires_grad:
            # An input without negative values has no use for its offset.
            quantizer = model.get_submodule(key.rpartition('.')[0])
            unused = key.endswith('.offset') and not quantizer.is_signed
            assert (parameter.grad is None) == unused, key
    learning = [
        name for name, layer in lcq_layers(model)
        if layer.weight.grad.any() and layer.weight_quantizer.clip.grad
    ]
    # Boxes match not every level.
    assert len(learning) > 0.8 * len(observations)
    optimizer.step()
    for key, parameter in model.named_parameters():
        assert parameter.isfinite().all(), key
    assert all(t.isfinite().all() for t in model.state_dict().values())
