"""Data sets and configs as users bring them, tiny."""
import copy
import functools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from lcq_mmdet import LCQError
from lcq_mmdet.cli import check_files

CONFIGS = Path(__file__).parents[1] / 'configs'
CLASSES = ('bolt', 'nut')
LOADERS = ('train_dataloader', 'val_dataloader')


def paint(rng, width, height):
    """Return a BGR image of noise with a bright box, and the box as xywh."""
    image = rng.integers(0, 90, (height, width, 3), np.uint8)
    w, h = max(width // 2, 8), max(height // 2, 8)
    x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
    image[y:y + h, x:x + w] += 120
    return image, [x, y, w, h]


def write_dataset(root, num_images=8, size=(64, 64), classes=CLASSES,
                  name='{:03d}.jpg', first_id=1, write=cv2.imwrite,
                  boxes=True, **changes):
    """Write images with a box each and their annotations in COCO's format.

    Args:
        root: Folder to make.
        size: Width and height in pixels.
        name: Template of the file names.
        first_id: Of images, annotations and categories.
        write: Called with a path and a BGR image.
        boxes: Whether an image has one, or a function of its number.
        changes: Keys of the annotations to add or replace.

    Returns:
        Path of the annotations; images lie in the folder ``images``.
    """
    root = Path(root)
    (root / 'images').mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(num_images):
        image, box = paint(rng, *size)
        file_name = name.format(index)
        write(str(root / 'images' / file_name), image)
        images.append(
            dict(
                id=first_id + index,
                file_name=file_name,
                width=size[0],
                height=size[1]))
        if boxes(index) if callable(boxes) else boxes:
            x, y, w, h = box
            annotations.append(
                dict(
                    id=first_id + index,
                    image_id=first_id + index,
                    category_id=first_id + index % len(classes),
                    bbox=box,
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                    **changes))
    content = dict(
        info={},
        images=images,
        annotations=annotations,
        categories=[
            dict(id=first_id + label, name=name)
            for label, name in enumerate(classes)
        ])
    path = root / 'annotations.json'
    path.write_text(json.dumps(content), encoding='utf-8')
    return path


def edit(path, change):
    """Let a function change the annotations at a path in place."""
    content = json.loads(path.read_text(encoding='utf-8'))
    change(content)
    path.write_text(json.dumps(content), encoding='utf-8')


def dataset_config(root, pipeline, classes=CLASSES, **changes):
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=tuple(classes)),
        pipeline=pipeline,
        **changes)


@functools.lru_cache(maxsize=None)
def _base_config():
    return Config.fromfile(CONFIGS / 'toy' / 'retinanet_r18_toy.py')


def make_config(root, work_dir, classes=CLASSES, size=(64, 64), **changes):
    """One epoch of a float RetinaNet on the data set at a folder."""
    cfg = copy.deepcopy(_base_config())
    cfg.merge_from_dict({
        'model.backbone.base_channels': 8,
        'model.neck.in_channels': [8, 16, 32, 64],
        'model.neck.out_channels': 16,
        'model.bbox_head.in_channels': 16,
        'model.bbox_head.feat_channels': 16,
        'model.bbox_head.stacked_convs': 1,
        'model.bbox_head.num_classes': len(classes),
        'model.test_cfg.score_thr': 0.,
        'model.test_cfg.max_per_img': 5,
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'param_scheduler.total_steps': 4,
    })
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        pipeline = loader.dataset.pipeline
        for step in pipeline:
            if step.type == 'Resize':
                step.scale = size
        loader.dataset = dataset_config(root, pipeline, classes)
        loader.dataset.test_mode = split != 'train'
        loader.update(batch_size=4, num_workers=0)
        if split != 'train':
            cfg[f'{split}_evaluator'].ann_file = str(root / 'annotations.json')
    cfg.train_dataloader.dataset.filter_cfg = dict(
        filter_empty_gt=True, min_size=32)
    cfg.work_dir = str(work_dir)
    cfg.visualizer.name = cfg.work_dir
    cfg.experiment_name = cfg.work_dir.replace('/', '_')
    cfg.log_level = 'WARNING'
    cfg.merge_from_dict(changes)
    return cfg


def check(data, classes=CLASSES, loaders=LOADERS, **changes):
    """Check the files of a changed config as the tools do."""
    check_files(
        make_config(data.parent, data.parent / 'run', classes, **changes),
        loaders)


def refusal(data, *args, **changes):
    """Return the message of a check that must fail."""
    with pytest.raises(LCQError) as info:
        check(data, *args, **changes)
    return str(info.value)


def set_first(where, **values):
    """Return a change of the first entry of a list."""
    def change(content):
        content[where][0].update(values)
    return change


def drop(where, key):
    """Return a change that leaves a key out of all entries of a list."""
    def change(content):
        for entry in content[where]:
            del entry[key]
    return change
