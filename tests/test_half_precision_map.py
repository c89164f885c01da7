"""The mAP of a trained detector whose network is in half precision."""
import copy
import itertools
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from odd_data import edit, make_config, paint, write_dataset

from lcq_mmdet import apply_lcq

CLASSES = ('bolt', )
NUM_IMAGES, SIDE, TILE = 64, 4, 64
MODULES = ['backbone', 'neck', 'bbox_head']


def write_tiles(root):
    """Write images of many boxes, so that the mAP is no matter of a few."""
    rng = np.random.default_rng(0)
    size = SIDE * TILE
    boxes = []

    def write(path, image):
        for row, column in itertools.product(range(SIDE), repeat=2):
            y, x = row * TILE, column * TILE
            tile, box = paint(rng, TILE, TILE)
            image[y:y + TILE, x:x + TILE] = tile
            boxes.append([box[0] + x, box[1] + y, *box[2:]])
        cv2.imwrite(path, image)

    def annotate(content):
        first, = content['annotations'][:1]
        content['annotations'] = [
            dict(first, id=index + 1, image_id=1 + index // SIDE**2, bbox=box,
                 area=box[2] * box[3]) for index, box in enumerate(boxes)
        ]

    edit(write_dataset(root, NUM_IMAGES, (size, size), CLASSES, write=write),
         annotate)


def configure(root, work_dir, num_epochs):
    size = SIDE * TILE
    return make_config(root, work_dir, CLASSES, (size, size), **{
        'train_cfg.max_epochs': num_epochs,
        'train_cfg.val_interval': num_epochs,
        'param_scheduler.total_steps': num_epochs * NUM_IMAGES // 4,
        'model.test_cfg.max_per_img': 2 * SIDE**2,
        'optim_wrapper.optimizer.lr': 0.02
    })


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A runner with a detector trained in float, and then at 4 bits."""
    folder = tmp_path_factory.mktemp('half')
    write_tiles(folder / 'data')
    torch.manual_seed(0)
    Runner.from_cfg(
        configure(folder / 'data', folder / 'float', 8)).train()
    cfg = apply_lcq(configure(folder / 'data', folder / 'lcq', 2), bits=4,
                    modules=MODULES)
    cfg.load_from = str(folder / 'float/epoch_8.pth')
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@torch.no_grad()
def evaluate(runner, model, dtype=torch.float32, autocast=None):
    """Return the mAP; heads give half precision, boxes are in float32."""
    model.eval()
    evaluator = runner.val_evaluator
    for data in runner.val_dataloader:
        inputs = model.data_preprocessor(data, False)
        samples = inputs['data_samples']
        with (torch.autocast('cpu', autocast) if autocast else nullcontext()):
            outputs = model(inputs['inputs'].to(dtype), mode='tensor')
        outputs = [[y.float() for y in level] for level in outputs]
        found = model.bbox_head.predict_by_feat(
            *outputs, rescale=True,
            batch_img_metas=[sample.metainfo for sample in samples])
        evaluator.process(
            data_samples=model.add_pred_to_datasample(samples, found),
            data_batch=data)
    return evaluator.evaluate(
        len(runner.val_dataloader.dataset))['coco/bbox_mAP']


@pytest.mark.slow
@pytest.mark.parametrize('options', [
    dict(autocast=torch.bfloat16), dict(dtype=torch.bfloat16),
    dict(dtype=torch.half)
], ids=['bf16 autocast', 'bf16', 'fp16'])
def test_map_is_no_lower_than_in_float32(trained, options):
    expected = evaluate(trained, trained.model)
    model = copy.deepcopy(trained.model)
    model.to(options.get('dtype', torch.float32))
    found = evaluate(trained, model, **options)
    assert expected > 0.7
    assert found >= expected - 0.002
