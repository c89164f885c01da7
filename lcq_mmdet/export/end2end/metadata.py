"""What a self-contained graph says of itself, for programs in any language."""
import json
from typing import Any, Dict, Mapping, Optional, Sequence

from mmengine.registry import DATASETS

from lcq_mmdet.datasets.configs import find_class

from ..graphs.network import IMAGE
from .suppression import Suppression

#: Version of what is said.
FORMAT = 1
OUTPUTS = ('dets', 'labels')


def describe(classes: Sequence[str], palette: Optional[Sequence[Any]],
             resize: Optional[Mapping[str, Any]], arithmetic: str,
             score_thr: float, how: Suppression) -> str:
    """Write it as JSON.

    Args:
        classes: Names of the classes.
        palette: Their colors, red, green and blue, 0 to 255, if they have.
        resize: How an image is resized before the graph gets it.
        arithmetic: ``'float'``, ``'exact'`` or ``'relaxed'``.
        score_thr: The lowest score of a box.
        how: How boxes are chosen.
    """
    told: Dict[str, Any] = dict(format=FORMAT, classes=list(classes))
    if palette:
        told['palette'] = [list(color) for color in palette]
    told.update(
        input=dict(
            name=IMAGE, layout='NHWC', dtype='uint8', channels='RGB'),
        resize=resize,
        outputs=OUTPUTS,
        arithmetic=arithmetic,
        score_thr=score_thr,
        iou_thr=how.iou_threshold)
    return json.dumps(told)


def dataset_meta(dataset: Mapping[str, Any], meta: Mapping[str, Any],
                 num_classes: int) -> Mapping[str, Any]:
    """Return classes and colors: the checkpoint's, or those of the test data.

    Args:
        dataset: Config of the test data.
        meta: The checkpoint's ``meta``.
        num_classes: Number of classes of the detector.
    """
    known = find_class(DATASETS, dataset.get('type'))
    for found in (meta.get('dataset_meta'), dataset.get('metainfo'),
                  getattr(known, 'METAINFO', None)):
        found = {key.lower(): value for key, value in (found or {}).items()}
        if len(found.get('classes', ())) == num_classes:
            return found
    return dict(classes=[str(label) for label in range(num_classes)])
