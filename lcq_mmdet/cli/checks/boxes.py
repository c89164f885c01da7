"""Boxes and images of a training set as mmdet keeps them."""
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from .coco import CocoFile
from .configs import Source
from .problems import Problems

# A larger share of boxes that reach past their image are of another format.
_FEW = 0.2


def check_boxes(file: CocoFile, classes: Sequence[str],
                problems: Problems) -> None:
    """Check the boxes of some classes, as mmdet takes or leaves them.

    Args:
        file: The annotations.
        classes: Names of the classes.
        problems: Gets what is wrong.
    """
    sizes = {
        image['id']: (image['width'], image['height'])
        for image in file.images
    }
    annotations = [
        annotation for annotation in file.annotations
        if annotation['image_id'] in sizes
        and file.category_ids.get(annotation['category_id']) in classes
    ]
    if not annotations:
        return
    boxes = file.boxes_of(annotations)
    size = np.array([sizes[a['image_id']] for a in annotations], np.float64)
    areas = np.array([a['area'] for a in annotations], np.float64)
    far = boxes[:, :2] + boxes[:, 2:]
    seen = np.minimum(far, size) - np.maximum(boxes[:, :2], 0)
    kept = ((seen > 0).all(1) & (areas > 0) & (boxes[:, 2:] >= 1).all(1)
            & np.isfinite(boxes).all(1))
    past = (far > size + 1).any(1)
    many = f'{len(annotations)} boxes'
    if (boxes[:, 2:] <= 1).all():
        problems.mistake(
            f'{file.path}: annotations.bbox: none of {many} is larger than a '
            'pixel; COCO has x, y, width and height in pixels, not parts of '
            'the image: convert them')
    elif not kept.any():
        problems.mistake(
            f'{file.path}: annotations.bbox: none of {many} has an area '
            'inside of its image; COCO has x, y, width and height in pixels: '
            'convert them')
    elif past.mean() > _FEW:
        _name_first(
            file, annotations, past, problems,
            'reach past the right or lower edge; are they x1, y1, x2, y2? '
            'COCO has x, y, width and height: convert them')
    elif not kept.all():
        _name_first(
            file, annotations, ~kept, problems,
            'have no area or lie outside of their image, and mmdet leaves '
            'them out; mend or delete them')


def _name_first(file: CocoFile, annotations: List[Dict[str, Any]],
                chosen: np.ndarray, problems: Problems, text: str) -> None:
    first = annotations[int(np.flatnonzero(chosen)[0])]
    problems.warn(
        f'{file.path}: annotations.bbox: {chosen.sum()} of '
        f'{len(annotations)} boxes, such as {first["bbox"]} of id '
        f'{first["id"]}, {text}')


def kept_images(source: Source, file: CocoFile,
                classes: Sequence[str]) -> List[Dict[str, Any]]:
    """Return the images that mmdet keeps of a data set."""
    images = file.images
    filters = source.config.get('filter_cfg') or {}
    if not source.config.get('test_mode'):
        images = [
            image for image in images if min(image['width'], image['height'])
            >= filters.get('min_size', 0)
        ]
        if filters.get('filter_empty_gt'):
            annotated = _annotated(file, classes)
            images = [image for image in images if image['id'] in annotated]
    indices = source.config.get('indices')
    if isinstance(indices, int):
        return images[:indices] if indices >= 0 else images[indices:]
    if indices is not None:
        return [images[i] for i in indices if -len(images) <= i < len(images)]
    return images


def check_not_empty(source: Source, file: CocoFile,
                    kept: Sequence[Dict[str, Any]], classes: Sequence[str],
                    problems: Problems) -> None:
    """Check that there are images left to train or test on."""
    if kept:
        return
    filters = source.config.get('filter_cfg') or {}
    key, why = 'ann_file', 'images is empty'
    if file.images and not source.config.get('test_mode'):
        key, why = _why_empty(file, filters, classes)
    elif file.images:
        key, why = 'indices', 'no image is chosen'
    problems.mistake(f'{source.key}.{key}: no image of {file.path} is left: '
                     f'{why}')


def _why_empty(file: CocoFile, filters: Dict[str, Any],
               classes: Sequence[str]) -> Tuple[str, str]:
    smallest = filters.get('min_size', 0)
    largest = max(min(i['width'], i['height']) for i in file.images)
    if largest < smallest:
        return 'filter_cfg', (
            f'min_size={smallest}, and the largest has a side of {largest}; '
            f'set min_size={largest}')
    if filters.get('filter_empty_gt') and not _annotated(file, classes):
        return 'filter_cfg', (
            'filter_empty_gt=True, and none has a box of these classes; '
            'annotate some, or set filter_empty_gt=False')
    return 'filter_cfg', f'{filters}; filter less'


def _annotated(file: CocoFile, classes: Sequence[str]) -> set:
    """Return ids of images with annotations, of any size, of classes."""
    return {
        annotation['image_id'] for annotation in file.annotations
        if file.category_ids.get(annotation['category_id']) in classes
    }
