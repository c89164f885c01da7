"""Every config of the repository: built, trained a few steps, evaluated."""
import pytest
import torch
import yaml
from conftest import CONFIGS, tiny_options
from mmdet.models import FasterRCNN, RetinaNet
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from lcq_mmdet.conversion.building import build_model
from lcq_mmdet.conversion.model import float_config
from lcq_mmdet.datasets import ToyCocoDataset
from lcq_mmdet.quantization.layers import lcq_layers, lcq_quantizers

DETECTORS = {
    'retinanet': (RetinaNet, 'retinanet/retinanet_r50_fpn_1x_coco.py'),
    'faster-rcnn': (FasterRCNN, 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
}
LEAVES = sorted(p for p in CONFIGS.rglob('*.py') if '_base_' not in p.parts)


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_config_trains_and_evaluates(path, toy_coco, tmp_path):
    cfg = Config.fromfile(path)
    detector = cfg.model.get('float_type', cfg.model.type)
    cfg.merge_from_dict(tiny_options(toy_coco, detector))
    for split, folder in (('train', 'train2017'), ('val', 'val2017'),
                          ('test', 'val2017')):
        loader = cfg[f'{split}_dataloader']
        # Around it there may be a RepeatDataset.
        dataset = loader.dataset.pop('dataset', loader.dataset)
        dataset.update(
            data_root=str(toy_coco),
            ann_file=f'annotations/instances_{folder}.json',
            data_prefix=dict(img=f'{folder}/'),
            metainfo=ToyCocoDataset.METAINFO)
        for transform in dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = (64, 64)
        loader.dataset = dataset
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.load_from = None
    if 'lcq' in cfg.default_hooks:
        cfg.default_hooks.lcq.update(require_float=False, num_batches=1)
    if 'lcq_distill' in cfg.default_hooks:
        teacher = str(tmp_path / 'float.pth')
        torch.save(build_model(float_config(cfg)).state_dict(), teacher)
        cfg.default_hooks.lcq_distill.teacher = teacher
    cfg.work_dir, cfg.log_level = str(tmp_path), 'WARNING'

    runner = Runner.from_cfg(cfg)
    # The quantizer of the image is not trained.
    trained = {name: parameter
               for name, parameter in runner.model.named_parameters()
               if parameter.requires_grad}
    reached = set()
    for name, parameter in trained.items():
        parameter.register_post_accumulate_grad_hook(
            lambda _, name=name: reached.add(name))
    runner.train()
    assert runner.iter == 4
    # An offset is in use where an input has negative values.
    unused = {f'{name}.offset'
              for name, quantizer in lcq_quantizers(runner.model)
              if not quantizer.is_signed}
    assert reached == trained.keys() - unused
    # Without a single detection, mmdet gives no average precision.
    assert 'val/coco/bbox_mAP' in runner.message_hub.log_scalars
    for name, parameter in trained.items():
        assert parameter.isfinite().all(), name


@pytest.mark.parametrize('bits', [4, 3, 2])
@pytest.mark.parametrize('name', DETECTORS)
def test_coco_config_is_mmdets_own_but_for_quantization(
        name, bits, tmp_path):
    float_class, published = DETECTORS[name]
    cfg = Config.fromfile(CONFIGS / f'{name}_lcq_{bits}bit.py')
    path = tmp_path / 'published.py'
    path.write_text(f"_base_ = 'mmdet::{published}'")
    expected = Config.fromfile(path)
    expected.model.backbone.init_cfg = None
    assert float_config(cfg).model == expected.model
    for key in ('train_dataloader', 'val_dataloader', 'test_evaluator'):
        assert cfg[key] == expected[key]
    assert name.replace('-', '_') in cfg.load_from

    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    assert type(model) is float_class
    layers = dict(lcq_layers(model))
    assert len(layers) == 53 + len(model.neck.lateral_convs) + len(
        model.neck.fpn_convs)
    assert {
        key: layer.weight_quantizer.bits
        for key, layer in layers.items()
    } == {key: 8 if key == 'backbone.conv1' else bits
          for key in layers}


@pytest.mark.parametrize('data', ['toy', 'bccd'])
@pytest.mark.parametrize('name', DETECTORS)
def test_small_config_starts_where_the_float_one_ends(name, data):
    float_cfg = Config.fromfile(CONFIGS / data / f'{name}_r18_{data}.py')
    paths = [p for p in LEAVES if p.stem.startswith(f'{name}_r18_lcq_')
             and p.stem.endswith(data)]
    assert {Config.fromfile(path).model.bits for path in paths} == {4, 3, 2}
    for path in paths:
        assert Config.fromfile(path).load_from == (
            f'work_dirs/{name}_r18_{data}/epoch_'
            f'{float_cfg.train_cfg.max_epochs}.pth')


@pytest.mark.parametrize(
    'path', [p for p in LEAVES if 'whole' in p.stem], ids=lambda p: p.stem)
def test_config_of_the_whole_detector_leaves_nothing_in_float(path):
    init_default_scope('mmdet')
    model = MODELS.build(Config.fromfile(path).model)
    assert not model.lcq_summary.left_float


def test_metafile_lists_the_coco_configs():
    models = yaml.safe_load((CONFIGS / 'metafile.yml').read_text())['Models']
    assert {model['Config'] for model in models} == {
        f'configs/{path.name}'
        for path in CONFIGS.glob('*.py')
    }
    for model in models:
        cfg = Config.fromfile(CONFIGS.parent / model['Config'])
        assert model['Metadata']['Epochs'] == cfg.train_cfg.max_epochs
