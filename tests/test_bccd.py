"""The configs on BCCD, where it is: LCQ_BCCD names its folder."""
import os
from collections import Counter
from pathlib import Path

import pytest
from conftest import CONFIGS
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

ROOT = Path(
    os.environ.get('LCQ_BCCD')
    or CONFIGS.parents[1] / 'shared' / 'data' / 'bccd')
pytestmark = pytest.mark.skipif(
    not (ROOT / 'annotations').is_dir(),
    reason='BCCD is not there; LCQ_BCCD names no folder of it')


@pytest.mark.parametrize('split, num_images, num_boxes', [
    ('train', 292, [3350, 301, 292]), ('test', 72, [805, 71, 69])])
def test_config_reads_all_boxes_of_each_class(split, num_images, num_boxes):
    cfg = Config.fromfile(CONFIGS / 'bccd/retinanet_r18_bccd.py')
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset = dataset.get('dataset', dataset)
    dataset.data_root = str(ROOT)
    init_default_scope('mmdet')
    dataset = DATASETS.build(dataset)
    assert len(dataset) == num_images
    labels = Counter(box['bbox_label'] for i in range(num_images)
                     for box in dataset.get_data_info(i)['instances'])
    assert [labels[label] for label in range(3)] == num_boxes
    assert dataset[0]['inputs'].shape == (3, 240, 320)
