"""mmdet's own configs, narrowed, from a float training to a quantized one."""
import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.runner import Runner
from odd_data import CLASSES, write_dataset
from test_families import FAMILIES, make_config
from test_survival import Bfloat16OptimWrapper  # noqa: F401
from training import load

from lcq_mmdet import apply_lcq
from lcq_mmdet.cli import check_files

BACKBONES = {
    'convnext': (
        'convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py', {
            'backbone.arch': 'atto',
            'neck.in_channels': [40, 80, 160, 320],
        }),
    'timm': ('timm_example/retinanet_timm-tv-resnet50_fpn_1x_coco.py', {
        'backbone.model_name': 'resnet10t',
        'backbone.pretrained': False,
        'neck.in_channels': [64, 128, 256, 512],
    }),
}
_SIZES = ('scale', 'img_scale', 'crop_size', 'size', 'random_size_range')


def change(value, data):
    """Make sizes small, and put in our data and number of classes."""
    if isinstance(value, (list, tuple)):
        return type(value)(change(item, data) for item in value)
    if not isinstance(value, dict):
        return value
    if 'ann_file' in value and 'pipeline' in value:
        value.update(data_root=str(data.parent), ann_file=data.name,
                     data_prefix=dict(img='images/'),
                     metainfo=dict(classes=CLASSES))
    for key, item in value.items():
        if key in _SIZES and isinstance(item, (list, tuple)):
            value[key] = (64, 64)
        elif key == 'scales':
            value[key] = [(64, 64)]
        elif key == 'border':
            value[key] = (-32, -32)
        elif key == 'max_cached_images':
            value[key] = 6
        elif key == 'num_classes':
            value[key] = len(CLASSES)
        else:
            value[key] = change(item, data)
    if value.get('type') in ('BN', 'GN') and 'num_groups' not in value:
        # Statistics of two iterations are to be of use.
        value['momentum'] = 0.9
    return value


def make_training(name, data, work_dir, amp=False):
    """Two epochs; those hooks that switch do so after the first."""
    cfg = make_config(name, work_dir.parent, {**FAMILIES, **BACKBONES})
    cfg.merge_from_dict(change(cfg.to_dict(), data))
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.pop('prefetch_factor', None)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(data)
    if name == 'detr':
        # No more than its queries.
        cfg.model.test_cfg.max_per_img = 5
    cfg.train_cfg = dict(by_epoch=True, max_epochs=2)
    for hook in cfg.get('custom_hooks', []):
        for key in ('num_last_epochs', 'switch_epoch'):
            if key in hook:
                hook[key] = 1
    cfg.default_hooks.checkpoint.interval = 1
    cfg.optim_wrapper.optimizer.lr = 1e-6
    cfg.optim_wrapper.type = (
        'Bfloat16OptimWrapper' if amp else 'OptimWrapper')
    cfg.work_dir = str(work_dir)
    cfg.visualizer.name = cfg.work_dir
    cfg.experiment_name = cfg.work_dir.replace('/', '_')
    cfg.log_level = 'WARNING'
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize('name, amp', [
    ('rtmdet', False), ('yolox', False), ('mask-rcnn', False), ('swin', False),
    ('detr', False), ('convnext', False), ('timm', False),
    # Of two stages mmcv's suppression has no bfloat16 on the CPU.
    ('rtmdet', True), ('detr', True)
])
def test_detector_is_trained_in_float_and_quantized(tmp_path, name, amp):
    if name in BACKBONES:
        for package in ('mmpretrain', 'timm'):
            pytest.importorskip(package)
    register_all_modules()
    data = write_dataset(tmp_path / 'data')
    cfg = make_training(name, data, tmp_path / 'float', amp)
    check_files(cfg, ('train_dataloader', 'val_dataloader'))
    Runner.from_cfg(cfg).train()
    cfg = make_training(name, data, tmp_path / 'lcq', amp)
    cfg.load_from = str(tmp_path / 'float/epoch_2.pth')
    cfg = apply_lcq(cfg, bits=4, init='mse')
    cfg.default_hooks.lcq.num_batches = 1
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.epoch == 2
    checkpoint = load(tmp_path / 'lcq/epoch_2.pth')
    for key, value in checkpoint['state_dict'].items():
        assert value.dtype not in (torch.half, torch.bfloat16), key
        assert value.isfinite().all(), key
