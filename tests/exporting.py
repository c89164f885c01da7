"""Small calibrated detectors to export, and what comes out of them."""
from pathlib import Path

import torch
from conftest import CONFIGS, tiny_options
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from lcq_mmdet import apply_lcq
from lcq_mmdet.export.graphs.heads import region_heads
from lcq_mmdet.quantization.calibration import initialize_, observe

FILES = dict(RetinaNet='retinanet_r18_toy.py', FasterRCNN='faster-rcnn_r18_toy'
             '.py')


def make_config(detector='RetinaNet', root=Path('data'), **options):
    """A tiny config; ``options`` are those of ``apply_lcq``."""
    cfg = Config.fromfile(CONFIGS / 'toy' / FILES[detector])
    cfg.merge_from_dict(tiny_options(root, detector))
    cfg.log_level = 'WARNING'
    return apply_lcq(cfg, **{'bits': 4, **options})


def build(cfg):
    init_default_scope('mmdet')
    return MODELS.build(cfg.model).eval()


def make_model(cfg):
    """Build a model with statistics of its own, calibrated on noise."""
    torch.manual_seed(0)
    model = build(cfg)
    for key, value in model.state_dict().items():
        if key.endswith('running_mean'):
            value.normal_(0, 0.01)
        elif key.endswith('running_var'):
            value.uniform_(0.2, 0.6)
    with observe(model) as observations:
        x = torch.randn(2, 3, 64, 64)
        features = model.extract_feat(x)
        if hasattr(model, 'bbox_head'):
            model.bbox_head(features)
        else:
            model.rpn_head(features)
            for head in region_heads(model):
                size = head.module.roi_feat_size
                head.compute(torch.randn(8, 16, *size))
    initialize_(model, observations)
    return model


@torch.no_grad()
def outputs(model):
    """Everything that a detector computes for two images, as tensors."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 64, 96, generator=generator)
    samples = [
        DetDataSample(metainfo=dict(
            img_shape=(64, 96), ori_shape=(64, 96), batch_input_shape=(64, 96),
            scale_factor=(1., 1.))) for _ in x
    ]
    found = list(model.extract_feat(x))
    if hasattr(model, 'bbox_head'):
        found += [t for level in model(x, mode='tensor') for t in level]
    for sample in model.predict(x, samples):
        found += sample.pred_instances.values()
    return [getattr(value, 'tensor', value) for value in found]
