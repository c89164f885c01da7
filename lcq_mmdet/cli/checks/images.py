"""Whether image files are there and are what annotations say."""
import os
import os.path as osp
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from lcq_mmdet.datasets.configs import type_name

from .configs import Source
from .problems import Problems

_ALL = 1000
_SAMPLE = 200
_ORIENTATION = 274
_TURNED = (5, 6, 7, 8)


def sample(paths: Sequence[Any]) -> List[Any]:
    """Return all of a thousand at most, or 200 spread evenly over more."""
    if len(paths) <= _ALL:
        return [*paths]
    return [paths[i * len(paths) // _SAMPLE] for i in range(_SAMPLE)]


def check_images(source: Source, images: Sequence[Dict[str, Any]],
                 problems: Problems) -> None:
    """Check image files of a data set.

    Args:
        source: The data set.
        images: Entries of its annotations that are used.
        problems: Gets what is wrong.
    """
    prefix = (source.config.get('data_prefix') or {}).get('img', '')
    folder = osp.join(source.config.get('data_root') or '', prefix)
    tried = sample(images)
    missing = [
        image['file_name'] for image in tried
        if not osp.isfile(osp.join(folder, image['file_name']))
    ]
    if missing:
        problems.mistake(
            f'{source.ann_file}: images.file_name={missing[0]!r}: '
            f'{osp.join(folder, missing[0])!r} does not exist, nor do '
            f'{len(missing) - 1} others of {len(tried)} looked at; '
            f'{_remedy(source, folder, missing[0])}')
    elif _loads_plainly(source):
        _check_headers(source, folder, tried[:_SAMPLE], problems)


def _remedy(source: Source, folder: str, name: str) -> str:
    key = f'{source.key}.data_prefix.img'
    plain = name.replace('\\', '/')
    if plain != name and osp.isfile(osp.join(folder, plain)):
        return 'write / in place of \\ in file_name'
    if osp.isfile(osp.join(folder, osp.basename(plain))):
        return f'file_name has a folder that {key} has already'
    parent = osp.dirname(folder.rstrip('/'))
    if osp.isfile(osp.join(parent, plain)):
        return f'file_name has the folder already, take it out of {key}'
    where = osp.dirname(osp.join(folder, plain))
    if osp.isdir(where):
        stem = osp.splitext(osp.basename(plain))[0].casefold()
        for other in os.listdir(where):
            if osp.splitext(other)[0].casefold() == stem:
                return f'there is {other!r}: write that in file_name'
    return f'set {key} to the folder that file_name starts from'


def _loads_plainly(source: Source) -> bool:
    step = source.pipeline[0] if source.pipeline else {}
    return (type_name(step) == 'LoadImageFromFile'
            and step.get('color_type', 'color') == 'color'
            and step.get('imdecode_backend', 'cv2') == 'cv2')


def _check_headers(source: Source, folder: str,
                   images: Sequence[Dict[str, Any]],
                   problems: Problems) -> None:
    other, first = 0, ''
    for image in images:
        path = osp.join(folder, image['file_name'])
        found = _size(path)
        if found is None:
            problems.mistake(
                f'{path}: is not an image that can be read; replace it, or '
                f'take it out of {source.ann_file}')
            return
        (width, height), is_turned = found
        if (width, height) != (image['width'], image['height']):
            other += 1
            first = first or (
                f'{path} is {width} x {height}'
                f'{" once turned as its EXIF data say" if is_turned else ""}, '
                f'and {image["width"]} x {image["height"]} in')
    if other:
        problems.warn(
            f'{first} {source.ann_file}, {other} of {len(images)} images '
            'looked at are of another size than their entry; boxes would be '
            'misplaced: correct width, height and boxes')


def _size(path: str) -> Optional[Tuple[Tuple[int, int], bool]]:
    """Return width and height as mmdet loads it, and whether it is turned."""
    try:
        with Image.open(path) as image:
            size, exif = image.size, image.getexif()
        if exif.get(_ORIENTATION) in _TURNED:
            return (size[1], size[0]), True
        return size, False
    except UnidentifiedImageError:
        # OpenCV, which mmdet loads with, knows other formats.
        content = np.fromfile(path, np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(
            content) else None
        return None if pixels is None else (pixels.shape[1::-1], False)
    except OSError:
        return None
