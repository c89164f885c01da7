"""Data sets, and types, as configs write them."""
import os.path as osp
from typing import Any, Dict, Iterator, Mapping, Tuple

from mmengine.registry import Registry


def innermost(where: str, cfg: Dict) -> Iterator[Tuple[str, Dict]]:
    """Iterate over the innermost dataset configs and their keys.

    Args:
        where: Key of ``cfg``.
        cfg: Config of a data loader, or of a data set that may wrap others.
    """
    inner = cfg.get('datasets', cfg.get('dataset'))
    if inner is None:
        yield where, cfg
    elif isinstance(inner, dict):
        yield from innermost(f'{where}.dataset', inner)
    else:
        for index, part in enumerate(inner):
            yield from innermost(f'{where}.datasets.{index}', part)


def paths_of(dataset: Dict) -> Iterator[Tuple[str, str]]:
    """Iterate over the paths that a dataset config names, and their keys."""
    root = dataset.get('data_root') or ''
    if dataset.get('ann_file'):
        yield 'ann_file', osp.join(root, dataset['ann_file'])
    for name, prefix in (dataset.get('data_prefix') or {}).items():
        yield f'data_prefix.{name}', osp.join(root, prefix)


def find_class(registry: Registry, name: Any) -> Any:
    """Look up a type as a config writes it, as a name or the class itself."""
    if not isinstance(name, str):
        return name
    with registry.switch_scope_and_registry('mmdet') as switched:
        return switched.get(name)


def type_name(cfg: Mapping[str, Any]) -> str:
    """Return a config's type, of either style, without its module or scope."""
    name = cfg.get('type', '')
    return getattr(name, '__name__', str(name)).rpartition('.')[2]
