import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from odd_data import write_dataset

from lcq_mmdet import apply_lcq
from lcq_mmdet.datasets import generate_toy_coco
from lcq_mmdet.functional import KERNELS

CONFIGS = Path(__file__).parents[1] / 'configs'
HAS_GPU = torch.cuda.is_available()

settings.register_profile('lcq', deadline=None, max_examples=50,
                          derandomize=True)
settings.load_profile('lcq')


def pytest_configure():
    """Let Triton interpret its kernels where no GPU can run them.

    It looks at this once, when it is imported.
    """
    if not HAS_GPU:
        os.environ.setdefault('TRITON_INTERPRET', '1')


_TINY_RESNET = {
    'model.backbone.depth': 18,
    'model.backbone.base_channels': 8,
    'model.neck.in_channels': [8, 16, 32, 64],
    'model.neck.out_channels': 16,
}
_TINY_MODELS = {
    'RetinaNet': {
        **_TINY_RESNET,
        'model.bbox_head.in_channels': 16,
        'model.bbox_head.feat_channels': 16,
        'model.bbox_head.stacked_convs': 1,
        'model.bbox_head.num_classes': 10,
        'model.test_cfg.score_thr': 0.,
    },
    'FasterRCNN': {
        **_TINY_RESNET,
        'model.rpn_head.in_channels': 16,
        'model.rpn_head.feat_channels': 16,
        'model.roi_head.bbox_roi_extractor.out_channels': 16,
        'model.roi_head.bbox_head.in_channels': 16,
        'model.roi_head.bbox_head.fc_out_channels': 16,
        'model.roi_head.bbox_head.num_classes': 10,
        'model.test_cfg.rpn.max_per_img': 20,
        'model.test_cfg.rcnn.score_thr': 0.,
    },
    # These are small as they are.
    'RTMDet': {'model.test_cfg.score_thr': 0.},
    'YOLOX': {'model.test_cfg.score_thr': 0.},
}
_TINY_MODELS['FCOS'] = _TINY_MODELS['ATSS'] = _TINY_MODELS['RetinaNet']


def tiny_options(toy_coco, detector='RetinaNet'):
    """Options that make any config small, on the data at ``toy_coco``."""
    options = {
        **_TINY_MODELS[detector],
        'train_dataloader.batch_size': 8,
        'train_cfg.max_epochs': 2,
        'train_cfg.val_interval': 2,
        'val_evaluator.ann_file':
        str(toy_coco / 'annotations/instances_val2017.json'),
        'default_hooks.checkpoint.max_keep_ckpts': -1,
    }
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = str(toy_coco)
    options['test_evaluator.ann_file'] = options['val_evaluator.ann_file']
    return options


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def toy_coco(tmp_path_factory):
    """A generated data set of 32 training and 6 validation images."""
    root = tmp_path_factory.mktemp('data') / 'toy_coco'
    generate_toy_coco(root, num_images=32, size=64, seed=0)
    return root


@pytest.fixture
def tiny_config(toy_coco, tmp_path):
    """A float RetinaNet that trains on the generated data in seconds."""
    cfg = Config.fromfile(CONFIGS / 'toy' / 'retinanet_r18_toy.py')
    cfg.merge_from_dict(tiny_options(toy_coco))
    cfg.work_dir = str(tmp_path / 'float')
    # mmengine keeps visualizers by name, and their folders.
    cfg.visualizer.name = cfg.work_dir
    cfg.log_level = 'WARNING'
    return cfg


@pytest.fixture(scope='session')
def float_checkpoint(toy_coco, tmp_path_factory):
    """A checkpoint of ``tiny_config``, as untrained as it was built."""
    cfg = Config.fromfile(CONFIGS / 'toy' / 'retinanet_r18_toy.py')
    cfg.merge_from_dict(tiny_options(toy_coco))
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    path = tmp_path_factory.mktemp('float') / 'float.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return str(path)


@pytest.fixture
def sweep_config(tiny_config, float_checkpoint, tmp_path):
    tiny_config.load_from = float_checkpoint
    tiny_config.work_dir = str(tmp_path / 'sweep')
    return tiny_config


@pytest.fixture
def lcq_config(tiny_config, float_checkpoint, tmp_path):
    """``tiny_config`` at 4 bits, from ``float_checkpoint``."""
    cfg = apply_lcq(tiny_config, bits=4)
    cfg.load_from = float_checkpoint
    cfg.default_hooks.lcq.num_batches = 2
    cfg.work_dir = str(tmp_path / 'lcq')
    return cfg


@pytest.fixture
def call_tool(monkeypatch, capfd):
    """Call a tool in this process; return exit code and last error line."""

    def call(name, *flags):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, flags)])
        code = 0
        try:
            runpy.run_path(
                str(CONFIGS.parent / 'tools' / name), run_name='__main__')
        except SystemExit as error:
            code = error.code
        return code, capfd.readouterr().err.strip().splitlines()[-1:]

    return call


@pytest.fixture(params=[
    pytest.param(
        'cuda',
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not HAS_GPU, reason='needs a GPU')
        ]),
    pytest.param(
        'cpu',
        marks=pytest.mark.skipif(
            HAS_GPU, reason='there is a GPU, which a runner takes')),
])
def device(request, monkeypatch):
    """Where a test for the GPU runs: there, and where there is none, here.

    On the CPU the same body shows that the test itself is right. Float32 is
    float32, and steps can be repeated.
    """
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    return request.param


@pytest.fixture
def triton(device, monkeypatch):
    """The device with Triton's kernel; on the CPU it is interpreted."""
    pytest.importorskip('triton')
    from lcq_mmdet.kernels.cuda import lcq_quantize_cuda
    if device == 'cpu':
        monkeypatch.setitem(KERNELS, 'cpu', lcq_quantize_cuda)
    assert KERNELS[device] is lcq_quantize_cuda
    return device


@pytest.fixture
def data(tmp_path):
    """A sound, tiny data set; the path of its annotations."""
    return write_dataset(tmp_path / 'data')
