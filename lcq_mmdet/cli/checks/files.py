"""Whether what a config names is there, before any long work."""
import os.path as osp
from typing import Dict, Sequence

from mmengine.config import Config

from lcq_mmdet.datasets.configs import innermost, paths_of, type_name
from lcq_mmdet.errors import LCQError

from .data import check_data


def check_files(cfg: Config, dataloaders: Sequence[str]) -> None:
    """Check local data and that the checkpoint exists, before any long work.

    Args:
        cfg: Config of an mmdet run.
        dataloaders: Keys of the data loaders that will be used.

    Raises:
        LCQError: If a file or folder is missing or of no use; says how to
            get it, or what to mend.
    """
    check_present(cfg, dataloaders)
    check_data(cfg, dataloaders)


def check_present(cfg: Config, dataloaders: Sequence[str]) -> None:
    """Check that files are there, and not what is in them.

    Args:
        cfg: Config of an mmdet run.
        dataloaders: Keys of the data loaders that will be used.

    Raises:
        LCQError: If a file or folder is missing; says how to get it.
    """
    for key in dataloaders:
        for where, dataset in innermost(key, cfg.get(key) or {}):
            for name, path in paths_of(dataset):
                if '://' not in path and not osp.exists(path):
                    raise LCQError(
                        f'{where}.{name}: {path!r} does not exist; '
                        f'{_how_to_get(dataset)}')
    load_from = cfg.get('load_from')
    if load_from and '://' not in load_from and not osp.isfile(load_from):
        raise LCQError(f'load_from={load_from!r}: no such file; train the '
                       'float detector first, or name its checkpoint')


def _how_to_get(dataset: Dict) -> str:
    root = (dataset.get('data_root') or '.').rstrip('/')
    if type_name(dataset) == 'ToyCocoDataset':
        return f"generate it: 'lcq make-toy-coco {root}'"
    if '2017' not in str(dataset.get('ann_file')):
        return 'set data_root, or the path below it'
    return ('get train2017, val2017 and annotations of COCO from '
            f'https://cocodataset.org/#download and unpack them in {root!r}, '
            'or set data_root; without COCO, try '
            'configs/toy/retinanet_r18_lcq_4bit_toy.py')
