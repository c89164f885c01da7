"""Checks of the annotations that a run will use, all read once."""
import os
import os.path as osp
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS

from lcq_mmdet.datasets.configs import find_class, innermost, type_name

from .boxes import check_boxes, check_not_empty, kept_images
from .classes import (check_categories, check_names, check_num_classes,
                      check_same_labels, labels_of)
from .coco import CocoFile, read_coco
from .configs import Source, metrics_of
from .images import check_images
from .problems import Problems
from .xml import check_xml

_RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


class _Checked(NamedTuple):
    """A data set in COCO's format that could be read."""
    source: Source
    file: CocoFile
    images: List[Dict[str, Any]]


def is_first_process(cfg: Config) -> bool:
    """Tell whether this process is the one that speaks for the run.

    Asked before the processes of a launcher have found each other.
    """
    ranks = [os.environ[key] for key in _RANKS if key in os.environ]
    return cfg.get('launcher', 'none') == 'none' or not ranks or int(
        ranks[0]) == 0


def check_data(cfg: Config, dataloaders: Sequence[str]) -> None:
    """Check annotations, classes, boxes and images before any long work.

    What mmdet trains with and a user should know is printed as a warning.
    Data sets of types of a user's own, and data that are not local files, are
    taken as they are; ``check_data=False`` in the config takes all so.

    Args:
        cfg: Config of an mmdet run.
        dataloaders: Keys of the data loaders that will be used; evaluators
            of the same name are checked with them.

    Raises:
        LCQError: If something would fail or give wrong results, a line each.
    """
    if not cfg.get('check_data', True) or not is_first_process(cfg):
        return
    checks = _Checks(cfg)
    for key in dataloaders:
        checks.check_loader(key)
    checks.problems.tell()


class _Checks:
    """Checks of one run, which share what they read."""

    def __init__(self, cfg: Config) -> None:
        self.problems = Problems()
        self._cfg = cfg
        self._files: Dict[str, Optional[CocoFile]] = {}
        # What labels mean, by the first file that was read, and its path.
        self._labels: Optional[List[str]] = None
        self._labels_path = ''
        self._has_num_classes = False

    def check_loader(self, key: str) -> None:
        loader = self._cfg.get(key)
        if not isinstance(loader, dict):
            return
        sources = [
            Source(where, config, find_class(DATASETS, config.get('type')))
            for where, config in innermost(key, loader)
        ]
        evaluator = key.replace('_dataloader', '_evaluator')
        metrics = ([] if key.startswith('train') else
                   [*metrics_of(self._cfg, evaluator)])
        needs_annotations = not metrics or not all(
            metric.get('format_only') for _, metric in metrics)
        checked = [
            self._check_source(source, needs_annotations)
            for source in sources
        ]
        for where, metric in metrics:
            if _is_a(find_class(METRICS, metric.get('type')), CocoMetric):
                self._check_metric(where, metric, sources, checked)

    def _check_source(self, source: Source,
                      needs_annotations: bool) -> Optional[_Checked]:
        is_coco, is_xml = _reads_coco(source.cls), _reads_xml(source.cls)
        if not (is_coco or is_xml) or not source.is_local:
            return None
        if not check_names(source, self.problems):
            return None
        if not self._has_num_classes:
            check_num_classes(self._cfg, source, self.problems)
            self._has_num_classes = True
        if is_xml:
            check_xml(source, self.problems)
        if not is_coco or not source.ann_file:
            return None
        file = self._read(source.ann_file, needs_annotations)
        if file is None:
            return None
        classes = source.classes
        check_categories(source, file.path, file.categories, self.problems)
        self._compare_labels(labels_of(file.categories, classes), file.path)
        check_boxes(file, classes, self.problems)
        if source.cls.filter_data is not CocoDataset.filter_data:
            return None
        images = kept_images(source, file, classes)
        check_not_empty(source, file, images, classes, self.problems)
        check_images(source, images, self.problems)
        if _loads_masks(source) and not file.has_all('segmentation'):
            self.problems.mistake(
                f'{file.path}: annotations: segmentation is missing or empty '
                f'in some, and {source.key}.pipeline has with_mask=True; add '
                'them, or train a detector of boxes')
        return _Checked(source, file, images)

    def _read(self, path: str, needs_annotations: bool) -> Optional[CocoFile]:
        path = osp.normpath(path)
        if path not in self._files:
            self._files[path] = read_coco(path, self.problems,
                                          needs_annotations)
        return self._files[path]

    def _compare_labels(self, labels: List[str], path: str) -> None:
        if self._labels is None:
            self._labels, self._labels_path = labels, path
        check_same_labels(self._labels, self._labels_path, labels, path,
                          self.problems)

    def _check_metric(self, where: str, metric: Dict[str, Any],
                      sources: Sequence[Source],
                      checked: Sequence[Optional[_Checked]]) -> None:
        path = metric.get('ann_file')
        if path is None:
            for source in sources:
                _check_instances(where, source, self.problems)
            return
        if '://' in path or metric.get('backend_args'):
            return
        if not osp.isfile(path):
            return self._tell_missing(where, path, sources)
        file = self._read(path, not metric.get('format_only'))
        if file is None or metric.get('format_only'):
            return
        names = sources[0].classes
        if isinstance(names, str) or not names:
            return
        self._check_labels(where, file, names)
        kinds = metric.get('metric', 'bbox')
        if 'segm' in kinds and not file.has_all('segmentation'):
            self.problems.mistake(
                f'{where}.metric={kinds!r}: segmentation is missing or empty '
                f"in some annotations of {file.path}; set metric='bbox'")
        if len(checked) == 1 and checked[0]:
            self._check_same_images(where, file, checked[0])

    def _tell_missing(self, where: str, path: str,
                      sources: Sequence[Source]) -> None:
        remedy = 'name the file of the data loader'
        for source in sources:
            if source.ann_file:
                remedy += f', {source.ann_file!r}; data_root is not added'
                break
        self.problems.mistake(
            f'{where}.ann_file={path!r}: does not exist; {remedy}')

    def _check_labels(self, where: str, file: CocoFile,
                      classes: Sequence[str]) -> None:
        labels = labels_of(file.categories, classes)
        self._compare_labels(labels, file.path)
        missing = [name for name in classes if name not in labels]
        if missing:
            self.problems.mistake(
                f'{where}.ann_file: {file.path} has no category '
                f'{missing[0]!r} of metainfo.classes, and a detection of it '
                'would stop the evaluation; add it to categories, in the same '
                'order')

    def _check_same_images(self, where: str, file: CocoFile,
                           checked: _Checked) -> None:
        own = {image['id'] for image in checked.images}
        path = checked.source.ann_file
        if not own <= file.image_ids:
            self.problems.mistake(
                f'{where}.ann_file={file.path!r}: has not all images of '
                f'{path!r}, which the data loader reads; name the same file')
        elif own != file.image_ids:
            self.problems.warn(
                f'{where}.ann_file={file.path!r}: has '
                f'{len(file.image_ids)} images and the data loader takes '
                f'{len(own)} of them; objects in the others count as missed')


def _is_a(cls: Any, base: type) -> bool:
    return isinstance(cls, type) and issubclass(cls, base)


def _reads_coco(cls: Any) -> bool:
    return _is_a(cls, CocoDataset) and all(
        getattr(cls, name) is getattr(CocoDataset, name)
        for name in ('load_data_list', 'parse_data_info', 'COCOAPI'))


def _reads_xml(cls: Any) -> bool:
    return _is_a(
        cls, XMLDataset) and cls.load_data_list is XMLDataset.load_data_list


def _loads_masks(source: Source) -> bool:
    return any(step.get('with_mask') for step in source.pipeline)


def _check_instances(where: str, source: Source, problems: Problems) -> None:
    """Check that samples carry what is evaluated against."""
    for step in source.pipeline:
        if (type_name(step) == 'PackDetInputs' and 'meta_keys' in step
                and 'instances' not in step['meta_keys']):
            problems.mistake(
                f'{where}.ann_file: there is none, and {source.key}.pipeline '
                "packs no 'instances' to evaluate against; set ann_file, or "
                "add 'instances' to meta_keys of PackDetInputs")
