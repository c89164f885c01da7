"""Write a data set of generated images in COCO's format and folder layout."""
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

from .scene import draw_scene
from .shapes import CLASSES

MIN_SIZE = 64
"""Smallest image side in pixels: below it small objects lose their shape."""
SPLITS = ('train2017', 'val2017')
_VERSION = '1.0'


def _info(split: str, num_images: int, size: int, seed: int) -> dict:
    """Describe a split such that equal descriptions mean equal images."""
    return dict(
        description='Generated images of simple shapes. This is not COCO: '
        'only the file format and the file names are the same.',
        version=_VERSION,
        split=split,
        num_images=num_images,
        size=size,
        seed=seed)


def _read_info(ann_file: Path) -> dict | None:
    """Return the description in an annotation file, None without one."""
    try:
        return json.loads(ann_file.read_text())['info']
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_complete(folder: Path, infos: dict[str, dict]) -> bool:
    """Tell whether a folder holds exactly the described images."""
    for split, info in infos.items():
        ann_file = folder / 'annotations' / f'instances_{split}.json'
        if _read_info(ann_file) != info:
            return False
        if len(list((folder / split).glob('*.jpg'))) != info['num_images']:
            return False
    return True


def _write_split(folder: Path, info: dict, indices: Iterable[int]) -> None:
    """Draw the images of one split and write them with their annotations."""
    split, size = info['split'], info['size']
    (folder / split).mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for index in indices:
        rng = np.random.default_rng(
            [info['seed'], SPLITS.index(split), index, size])
        image, found = draw_scene(rng, size)
        image_id = index + 1
        file_name = f'{image_id:012d}.jpg'
        path = folder / split / file_name
        if not cv2.imwrite(str(path), image):
            raise OSError(f'cannot write the image {path}')
        images.append(
            dict(
                id=image_id,
                file_name=file_name,
                width=size,
                height=size,
                license=1))
        for annotation in found:
            annotation.update(id=len(annotations) + 1, image_id=image_id)
            annotations.append(annotation)

    content = dict(
        info=info,
        licenses=[
            dict(
                id=1,
                name='Apache License 2.0',
                url='https://www.apache.org/licenses/LICENSE-2.0')
        ],
        categories=[
            dict(id=label, name=name, supercategory='shape')
            for label, name in enumerate(CLASSES, 1)
        ],
        images=images,
        annotations=annotations)
    ann_file = folder / 'annotations' / f'instances_{split}.json'
    ann_file.write_text(json.dumps(content))


def generate_toy_coco(
        out_dir: str | os.PathLike,
        num_images: int,
        size: int = 128,
        seed: int = 0,
        progress: Callable[[list[int]], Iterable[int]] = iter) -> bool:
    """Write a generated detection data set in COCO's format.

    An image depends on nothing but its split, its position and ``size`` and
    ``seed``: a longer set starts with the images of a shorter one. The folder
    appears under its name only when it is complete.

    Args:
        out_dir: Folder to make; it must not exist, be empty, or hold the
            result of an earlier call with the same arguments.
        num_images: Number of training images, at least 1. A fifth as many
            validation images, at least 1, come in addition.
        size: Side of the square images in pixels, at least 64.
        seed: Seed of everything random, not negative.
        progress: Wraps the positions to draw, once for each split, for
            example :func:`mmengine.track_iter_progress`.

    Returns:
        True if the data set was written, False if it was already there.

    Raises:
        ValueError: If ``num_images``, ``size`` or ``seed`` is too small.
        FileExistsError: If ``out_dir`` holds anything else.
    """
    for name, value, least in (('num_images', num_images, 1),
                               ('size', size, MIN_SIZE), ('seed', seed, 0)):
        if value < least:
            raise ValueError(f'{name} is {value}, must be at least {least}')
    lengths = (num_images, max(1, num_images // 5))
    infos = {
        split: _info(split, length, size, seed)
        for split, length in zip(SPLITS, lengths)
    }
    target = Path(os.path.abspath(out_dir))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if _is_complete(target, infos):
            return False
        raise FileExistsError(
            f'{out_dir} exists with other contents than these arguments '
            'give: remove it or choose another folder')

    partial = target.with_name(f'.{target.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / 'annotations').mkdir(parents=True)
        for split, info in infos.items():
            _write_split(partial, info,
                         progress(list(range(info['num_images']))))
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True
