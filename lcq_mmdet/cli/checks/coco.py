"""Reading annotations in COCO's format, and what must be in them."""
import json
from collections import Counter
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from lcq_mmdet.errors import some

from .problems import Problems

_LISTS = ('images', 'annotations', 'categories')
_NUMBER, _TEXT, _ANY = (int, float), (str, ), (object, )
_NEEDED: Dict[str, Dict[str, Tuple[type, ...]]] = dict(
    images=dict(id=_ANY, file_name=_TEXT, width=_NUMBER, height=_NUMBER),
    annotations=dict(
        id=_ANY,
        image_id=_ANY,
        category_id=_ANY,
        bbox=(list, ),
        area=_NUMBER),
    categories=dict(id=_ANY, name=_TEXT))


class CocoFile:
    """Annotations that mmdet can read.

    Args:
        path: Where they were read.
        content: What was read, with all that mmdet needs.
    """

    def __init__(self, path: str, content: Dict[str, Any]) -> None:
        self.path = path
        self.images: List[Dict[str, Any]] = content['images']
        self.annotations: List[Dict[str, Any]] = content['annotations']
        self.categories: List[str] = [
            category['name'] for category in content['categories']
        ]
        self.category_ids = {
            category['id']: category['name']
            for category in content['categories']
        }
        self.image_ids = {image['id'] for image in self.images}

    def has_all(self, key: str) -> bool:
        """Whether no annotation is without a value for a key."""
        return all(annotation.get(key) for annotation in self.annotations)

    def boxes_of(self, annotations: Sequence[Dict[str, Any]]) -> np.ndarray:
        """Return x, y, width and height in pixels, shape (N, 4)."""
        boxes = [annotation['bbox'] for annotation in annotations]
        return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def read_coco(path: str, problems: Problems,
              needs_annotations: bool = True) -> Optional[CocoFile]:
    """Read annotations once, and check what mmdet takes for granted.

    Args:
        path: Path of a JSON file that exists.
        problems: Gets what is wrong.
        needs_annotations: Whether there must be a list of them.

    Returns:
        None if mmdet cannot read them.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        problems.mistake(f'{path}: is not a JSON file that can be read: '
                         f'{error}; write it again')
        return None
    if not isinstance(content, dict):
        problems.mistake(
            f'{path}: holds a {type(content).__name__}; COCO has an object '
            f'with {", ".join(_LISTS)}; convert the annotations')
        return None
    if not needs_annotations:
        content.setdefault('annotations', [])
    for key in _LISTS:
        if not isinstance(content.get(key), list):
            problems.mistake(
                f'{path}: {key}='
                f'{type(content[key]).__name__ if key in content else "none"}'
                ': must be a list as in COCO; convert the annotations')
            return None
    is_complete = [
        _check_needed(path, key, content[key], problems) for key in _LISTS
    ]
    if not all(is_complete):
        return None
    if 'info' not in content:
        problems.warn(f'{path}: info is missing; pycocotools needs it, and is '
                      'given an empty one: add "info": {}')
    coco = CocoFile(path, content)
    _check_ids(coco, content, problems)
    _check_links(coco, problems)
    return coco


def _check_needed(path: str, where: str, entries: List[Any],
                  problems: Problems) -> bool:
    """Check that every entry has what mmdet reads, of a kind it can use."""
    for key, kinds in _NEEDED[where].items():
        lacking = [
            index for index, entry in enumerate(entries)
            if not isinstance(entry, dict) or entry.get(key) is None
        ]
        if lacking:
            remedy = ('it is width times height of the bbox'
                      if key == 'area' else 'add it')
            problems.mistake(
                f'{path}: {where}.{lacking[0]}.{key} is missing, in '
                f'{len(lacking)} of {len(entries)}; mmdet stops there: '
                f'{remedy}')
            return False
        for index, entry in enumerate(entries):
            if not isinstance(entry[key], kinds):
                kind = 'text' if kinds is _TEXT else 'a number'
                if key == 'bbox':
                    kind = 'x, y, width and height'
                problems.mistake(f'{path}: {where}.{index}.{key}='
                                 f'{entry[key]!r}: must be {kind}')
                return False
    if where != 'annotations':
        return True
    for index, entry in enumerate(entries):
        box = entry['bbox']
        if len(box) != 4 or not all(
                isinstance(side, (int, float)) for side in box):
            problems.mistake(
                f'{path}: annotations.{index}.bbox={box!r}: must be four '
                'numbers: x, y, width and height')
            return False
    return True


def _check_ids(file: CocoFile, content: Dict[str, Any],
               problems: Problems) -> None:
    for where in _LISTS:
        ids = [entry['id'] for entry in content[where]]
        again = [i for i, count in Counter(ids).items() if count > 1]
        if again:
            problems.mistake(
                f'{file.path}: {where}: {len(again)} ids repeat, the first '
                f'is {again[0]!r}; number them anew, from 1')
        elif where == 'annotations' and 0 in ids:
            problems.warn(
                f'{file.path}: annotations: an id is 0, and pycocotools takes '
                'its box for one that was not found; number them from 1')
    names = file.categories
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        problems.mistake(
            f'{file.path}: categories: {some(twice)} names are there more '
            'than once; give each category a name of its own')


def _check_links(file: CocoFile, problems: Problems) -> None:
    lacking = sum('iscrowd' not in a for a in file.annotations)
    if lacking:
        problems.warn(
            f'{file.path}: annotations: iscrowd is missing in {lacking} of '
            f'{len(file.annotations)}; pycocotools needs it, and is given 0: '
            'add "iscrowd": 0')
    for key, known in (('image_id', file.image_ids),
                       ('category_id', file.category_ids)):
        astray = [a[key] for a in file.annotations if a[key] not in known]
        if astray:
            hint = ''
            if all(str(i) in map(str, known) for i in astray[:10]):
                hint = ' (text in one place and a number in the other)'
            problems.warn(
                f'{file.path}: annotations: {len(astray)} of '
                f'{len(file.annotations)} have a {key} that is not in the '
                f'file, the first is {astray[0]!r}{hint}; they are left out')
