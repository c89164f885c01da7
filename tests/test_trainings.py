"""Trainings end to end on the data and configs that users bring, tiny.

Each of the fast ones has several of them at once; the slow ones tell apart.
"""
import copy

import cv2
import numpy as np
import pytest
from mmengine.runner import Runner
from odd_data import CLASSES, edit, make_config, write_dataset
from PIL import Image
from training import load

from lcq_mmdet import apply_lcq
from lcq_mmdet.cli import check_files
from lcq_mmdet.cli.configs import read_config

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def train(cfg):
    """Check, quantize and train as the tools do; return the runner."""
    check_files(cfg, LOADERS)
    cfg = apply_lcq(cfg, bits=4, init='mse')
    cfg.default_hooks.lcq.update(require_float=False, num_batches=1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def gray(path, image):
    cv2.imwrite(path, image[..., 0])


def rgba(path, image):
    cv2.imwrite(path, np.dstack([image, image[..., :1]]))


def sixteen_bits(path, image):
    cv2.imwrite(path, image.astype(np.uint16) * 256)


def turned(path, image):
    """Write JPEG data that are the image once EXIF has turned them."""
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(image)).save(path, format='jpeg', exif=exif)


FORMATS = {
    'gray': gray,
    'rgba': rgba,
    '16 bits': sixteen_bits,
    'turned': turned
}
NAMES = ('a,b', 'it\'s "q"', 'x/y', '猫', '100 % {0}')


def any_format(path, image):
    write = [*FORMATS.values()]
    any_format.calls += 1
    write[any_format.calls % len(write)](path, image)


def test_odd_images_names_and_ids_are_trained_and_evaluated(tmp_path, capfd):
    any_format.calls = 0
    data = write_dataset(
        tmp_path / 'naïve data', name='a é {:03d} (1).png', classes=NAMES,
        first_id=10**9, write=any_format, boxes=lambda index: index % 4 != 3)

    def like_a_converter(content):
        del content['info']
        for entry in content['annotations']:
            del entry['iscrowd']
        content['annotations'][0].update(
            iscrowd=1, segmentation=dict(counts=[64 * 64], size=[64, 64]))

    edit(data, like_a_converter)
    runner = train(
        make_config(data.parent, tmp_path / 'run', NAMES, **{
            'train_dataloader.dataset.filter_cfg.filter_empty_gt': False}))
    warnings = [line for line in capfd.readouterr().err.splitlines()
                if line.startswith('warning: ')]
    assert [('info' in line, 'iscrowd' in line) for line in warnings] == [
        (True, False), (False, True)]
    checkpoint = load(tmp_path / 'run/epoch_1.pth')
    assert checkpoint['meta']['dataset_meta']['classes'] == NAMES
    assert 'val/coco/bbox_mAP' in runner.message_hub.log_scalars


def mix(cfg):
    """Nest every wrapper of data sets."""
    single = cfg.train_dataloader.dataset
    pipeline = single.pipeline
    mosaic = copy.deepcopy(single)
    mosaic.pipeline = pipeline[:2]
    cfg.train_dataloader.dataset = dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='RepeatDataset',
                times=2,
                dataset=dict(
                    type='ClassBalancedDataset',
                    oversample_thr=0.6,
                    dataset=copy.deepcopy(single))),
            dict(
                type='MultiImageMixDataset',
                dataset=mosaic,
                pipeline=[
                    dict(type='Mosaic', img_scale=(64, 64)),
                    dict(type='MixUp', img_scale=(64, 64)), *pipeline[2:]
                ])
        ])


def without(*splits):
    def change(cfg):
        for key in [*cfg]:
            if key.startswith(splits):
                cfg.pop(key)
    return change


def by_iterations(cfg):
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1)
    cfg.log_processor.by_epoch = False


def synchronized(cfg):
    cfg.model.backbone.norm_cfg = dict(type='SyncBN', requires_grad=True)


def averaged(cfg):
    cfg.custom_hooks = [
        dict(type='EMAHook', momentum=0.1, update_buffers=True)
    ]
    cfg.optim_wrapper.accumulative_counts = 2


def test_wrapped_data_and_averaged_weights_are_resumed(tmp_path):
    write_dataset(tmp_path / 'data')

    def config(num_epochs):
        cfg = make_config(tmp_path / 'data', tmp_path / 'run',
                          **{'train_cfg.max_epochs': num_epochs})
        for change in (mix, synchronized, averaged, without('test_')):
            change(cfg)
        return cfg

    train(config(1))
    first = load(tmp_path / 'run/epoch_1.pth')
    assert 'ema_state_dict' in first
    cfg = config(2)
    cfg.experiment_name += '_resumed'
    cfg.resume, cfg.load_from = True, str(tmp_path / 'run/epoch_1.pth')
    runner = train(cfg)
    # 16 and more of the repeated data, and 8 of the mixed.
    assert len(runner.train_dataloader.dataset) >= 24
    second = load(tmp_path / 'run/epoch_2.pth')
    assert second['meta']['iter'] == 2 * first['meta']['iter']
    assert second['ema_state_dict']['steps'] == 2 * first['ema_state_dict'][
        'steps']


PYTHON_STYLE = """
from mmengine.config import read_base
from mmengine.optim import OptimWrapper
from mmdet.models import RetinaNet
with read_base():
    from .base import *
model.update(type=RetinaNet)
optim_wrapper.update(type=OptimWrapper)
"""


def test_config_in_pure_python_trains_from_another_folder(
        tmp_path, monkeypatch):
    """With a work directory that is relative, and no evaluation."""
    write_dataset(tmp_path / 'data')
    cfg = make_config(tmp_path / 'data', 'runs/a')
    without('val_', 'test_')(cfg)
    by_iterations(cfg)
    cfg.dump(tmp_path / 'base.py')
    (tmp_path / 'leaf.py').write_text(PYTHON_STYLE)
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    train(read_config(str(tmp_path / 'leaf.py')))
    assert load('runs/a/iter_2.pth')['meta']['iter'] == 2
    # What the run leaves is a config, too.
    assert read_config('runs/a/leaf.py').model.bits == 4


@pytest.mark.slow
def test_learning_rate_is_scaled_in_one_process(tmp_path, call_tool):
    """That of weights and of quantizers, from a batch of 4 to one of 16."""
    write_dataset(tmp_path / 'data')
    rates = {}
    for name, flags in (('as it is', ()), ('scaled', ('--auto-scale-lr', ))):
        cfg = make_config(tmp_path / 'data', tmp_path / name, **{
            'auto_scale_lr': dict(enable=False, base_batch_size=16)})
        without('val_', 'test_')(cfg)
        cfg.param_scheduler = []
        cfg.dump(tmp_path / 'config.py')
        assert call_tool(
            'train.py', tmp_path / 'config.py', '--bits', 4, *flags,
            '--cfg-options', 'model.init=mse',
            'default_hooks.lcq.require_float=False')[0] == 0
        groups = load(tmp_path / name / 'epoch_1.pth')['optimizer'][
            'param_groups']
        rates[name] = sorted(group['lr'] for group in groups)
    assert len(set(rates['scaled'])) > 1
    assert rates['scaled'] == pytest.approx(
        [rate / 4 for rate in rates['as it is']])


@pytest.mark.slow
@pytest.mark.parametrize('name', FORMATS)
def test_format_of_images(tmp_path, name):
    write_dataset(tmp_path / 'data', name='{}.png', write=FORMATS[name])
    train(make_config(tmp_path / 'data', tmp_path / 'run'))


DATA = {
    'one class': dict(classes=('x', )),
    'long': dict(size=(40, 2000)),
    'wide': dict(size=(2000, 40)),
    'one image': dict(num_images=1, size=(256, 256)),
    'no boxes': dict(boxes=False),
    'text ids': dict(),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', DATA)
def test_kind_of_data(tmp_path, name):
    settings = DATA[name]
    data = write_dataset(tmp_path / 'data', **settings)
    if name == 'text ids':
        edit(data, lambda content: [
            entry.update({key: str(entry[key])})
            for where, key in (('images', 'id'), ('annotations', 'image_id'))
            for entry in content[where]])
    # mmdet 3.3 cannot pack a flipped image that is one pixel wide.
    size = (256, 256) if 'size' in settings else (64, 64)
    train(make_config(
        data.parent, tmp_path / 'run', settings.get('classes', CLASSES),
        size, **{
            'train_dataloader.dataset.filter_cfg.filter_empty_gt':
            settings.get('boxes', True)}))


@pytest.mark.slow
@pytest.mark.parametrize('change', [
    mix, without('val_'), without('test_'), by_iterations, synchronized
], ids=['mix', 'no val', 'no test', 'by iterations', 'SyncBN'])
def test_kind_of_config(tmp_path, change):
    write_dataset(tmp_path / 'data')
    cfg = make_config(tmp_path / 'data', tmp_path / 'run')
    change(cfg)
    train(cfg)
