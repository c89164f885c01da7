"""Finding data sets, metrics and numbers of classes in a config."""
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from mmengine.config import Config

from lcq_mmdet.datasets.configs import paths_of

# Their numbers of classes are not those of the boxes.
_OTHER_CLASSES = ('rpn_head', 'semantic_head', 'backbone', 'neck', 'reid')


class Source(NamedTuple):
    """An innermost data set of a data loader.

    Attributes:
        key: Where it is in the config.
        config: Its config.
        cls: Its class, None if that is not registered.
    """
    key: str
    config: Dict[str, Any]
    cls: Any

    @property
    def is_local(self) -> bool:
        """Whether its files can be looked at without a client."""
        backend = (self.config.get('backend_args') or {}).get(
            'backend', 'local')
        paths = dict(paths_of(self.config)).values()
        return backend in ('local', 'disk') and not any(
            '://' in path for path in paths)

    @property
    def ann_file(self) -> Optional[str]:
        return dict(paths_of(self.config)).get('ann_file')

    @property
    def metainfo(self) -> Dict[str, Any]:
        return self.config.get('metainfo') or {}

    @property
    def classes(self) -> Any:
        """Names as the config or else the data set's class has them."""
        return self.metainfo.get(
            'classes',
            getattr(self.cls, 'METAINFO', {}).get('classes'))

    @property
    def pipeline(self) -> List[Dict[str, Any]]:
        return self.config.get('pipeline') or []


def metrics_of(cfg: Config, key: str) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Iterate over the metric configs of an evaluator and their keys."""
    evaluator = cfg.get(key) or []
    if isinstance(evaluator, dict):
        if 'metrics' not in evaluator:
            yield key, evaluator
            return
        key, evaluator = f'{key}.metrics', evaluator['metrics']
        evaluator = (
            evaluator if isinstance(evaluator, (list, tuple)) else [evaluator])
    for index, metric in enumerate(evaluator):
        if isinstance(metric, dict):
            yield f'{key}.{index}', metric


def find_num_classes(cfg: Any, where: str) -> Iterator[Tuple[str, int]]:
    """Iterate over the numbers of box classes in a model and their keys."""
    if isinstance(cfg, dict):
        if 'language_model' in cfg:
            return
        for key, value in cfg.items():
            if key == 'num_classes' and isinstance(value, int):
                yield f'{where}.{key}', value
            elif key not in _OTHER_CLASSES:
                yield from find_num_classes(value, f'{where}.{key}')
    elif isinstance(cfg, (list, tuple)):
        for index, value in enumerate(cfg):
            yield from find_num_classes(value, f'{where}.{index}')
