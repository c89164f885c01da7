"""Checks of what a config names, before any long work."""
import os.path as osp
from typing import Dict, Iterator, Sequence, Tuple

from mmengine.config import Config

from lcq_mmdet.errors import LCQError


def check_files(cfg: Config, dataloaders: Sequence[str]) -> None:
    """Check that local data and checkpoint exist, before any long work.

    Args:
        cfg: Config of an mmdet run.
        dataloaders: Keys of the data loaders that will be used.

    Raises:
        LCQError: If a file or folder is missing; says how to get it.
    """
    for key in dataloaders:
        for where, dataset in _datasets(key, cfg.get(key) or {}):
            for name, path in _paths(dataset):
                if '://' not in path and not osp.exists(path):
                    raise LCQError(
                        f'{where}.{name}: {path!r} does not exist; '
                        f'{_how_to_get(dataset)}')
    load_from = cfg.get('load_from')
    if load_from and '://' not in load_from and not osp.isfile(load_from):
        raise LCQError(f'load_from={load_from!r}: no such file; train the '
                       'float detector first, or name its checkpoint')


def _datasets(where: str, cfg: Dict) -> Iterator[Tuple[str, Dict]]:
    """Iterate over the innermost dataset configs and their keys."""
    inner = cfg.get('datasets', cfg.get('dataset'))
    if inner is None:
        yield where, cfg
    elif isinstance(inner, dict):
        yield from _datasets(f'{where}.dataset', inner)
    else:
        for index, part in enumerate(inner):
            yield from _datasets(f'{where}.datasets.{index}', part)


def _paths(dataset: Dict) -> Iterator[Tuple[str, str]]:
    root = dataset.get('data_root') or ''
    if dataset.get('ann_file'):
        yield 'ann_file', osp.join(root, dataset['ann_file'])
    for name, prefix in (dataset.get('data_prefix') or {}).items():
        yield f'data_prefix.{name}', osp.join(root, prefix)


def _how_to_get(dataset: Dict) -> str:
    root = (dataset.get('data_root') or '.').rstrip('/')
    if dataset.get('type') == 'ToyCocoDataset':
        return f"generate it: 'python tools/make_toy_coco.py {root}'"
    return ('get train2017, val2017 and annotations of COCO from '
            f'https://cocodataset.org/#download and unpack them in {root!r}, '
            'or set data_root; without COCO, try '
            'configs/toy/retinanet_r18_lcq_4bit_toy.py')
