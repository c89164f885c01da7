"""Class names of a config against those of annotations and the model."""
import difflib
from typing import Any, List, Sequence

from mmengine.config import Config

from .configs import Source, find_num_classes
from .problems import Problems

_MANY = 8


def show(names: Sequence[str]) -> str:
    """Write names as a config would, the first of many."""
    shown = ', '.join(repr(name) for name in names[:_MANY])
    return f'({shown}{", ..." if len(names) > _MANY else ","})'


def check_names(source: Source, problems: Problems) -> bool:
    """Check how the config writes class names; tell whether they are usable.

    Args:
        source: A data set.
        problems: Gets what is wrong.
    """
    key, given = f'{source.key}.metainfo', source.metainfo
    if 'classes' not in given and 'CLASSES' in given:
        problems.mistake(f'{key}.CLASSES: is not read by mmdet 3; write '
                         f'classes={show(tuple(given["CLASSES"]))}')
        return False
    names = source.classes
    if isinstance(names, str):
        problems.mistake(f'{key}.classes={names!r}: is one string; a single '
                         f'class is written ({names!r},), with the comma')
        return False
    if not names or not all(isinstance(name, str) for name in names):
        return False
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        problems.mistake(f'{key}.classes: {twice[0]!r} is there twice; each '
                         'class needs a name of its own')
    return not twice


def labels_of(categories: Sequence[str], classes: Sequence[str]) -> List[str]:
    """Return the names of labels 0, 1, ... as mmdet numbers them.

    They follow the order of the file, not that of the config.
    """
    return [name for name in categories if name in classes]


def check_categories(source: Source, path: str, categories: Sequence[str],
                     problems: Problems) -> None:
    """Check that the classes of a config are categories of its file."""
    key, classes = f'{source.key}.metainfo.classes', source.classes
    missing = [name for name in classes if name not in categories]
    unused = [name for name in categories if name not in classes]
    explained = [
        text for text in (_explain(name, unused) for name in missing) if text
    ]
    labels = labels_of(categories, classes)
    if explained:
        for text in explained:
            problems.mistake(f'{key}: {text} in {path}; mend the config, or '
                             'the file')
    elif not labels:
        problems.mistake(
            f'{key}={show(classes)}: none of them is a category of {path}; '
            f'that would be metainfo=dict(classes={show(categories)})')
    elif missing and labels != list(classes[:len(labels)]):
        label, name = _first_difference(labels, classes)
        problems.warn(
            f'{path}: categories has no {missing[0]!r}, which {key} has, and '
            f'label {label} becomes {labels[label]!r} in place of {name!r}; '
            'add the category to the file, or take it out of classes')
    elif not missing and labels != list(classes):
        label, name = _first_difference(labels, classes)
        problems.warn(
            f'{key}: label {label} is {name!r} there and {labels[label]!r} in '
            f'the order of categories in {path}, which mmdet follows: '
            'pictures would show the wrong names; write classes in the order '
            f'of the file, {show(labels)}')


def _first_difference(labels: Sequence[str], classes: Sequence[str]) -> Any:
    return next((label, name)
                for label, (has, name) in enumerate(zip(labels, classes))
                if has != name)


def _explain(name: str, unused: Sequence[str]) -> str:
    """Say what a name may stand for, of those that only the file has."""
    for other in unused:
        if other.strip().casefold() == name.strip().casefold():
            return f'{name!r} is written {other!r}'
    for cut in range(1, len(name)):
        parts = name[:cut], name[cut:]
        if all(part in unused for part in parts):
            return (f'{name!r} is {parts[0]!r} and {parts[1]!r}, a comma is '
                    'missing between them,')
    for other in difflib.get_close_matches(name, unused, 1, 0.85):
        return f'{name!r} may be what is {other!r}'
    return ''


def check_same_labels(one: Sequence[str], one_path: str,
                      other: Sequence[str], other_path: str,
                      problems: Problems) -> None:
    """Check that labels mean the same in two files."""
    for label, names in enumerate(zip(one, other)):
        if names[0] != names[1]:
            problems.mistake(
                f'{other_path}: categories makes label {label} {names[1]!r}, '
                f'and {one_path} makes it {names[0]!r}; give both files the '
                'same categories in the same order')
            return


def check_num_classes(cfg: Config, source: Source,
                      problems: Problems) -> None:
    """Check the numbers of classes in the model against a data set's."""
    num_classes = len(source.classes)
    names = f'{source.key}.metainfo.classes'
    for key, value in find_num_classes(cfg.get('model') or {}, 'model'):
        if value != num_classes:
            problems.mistake(
                f'{key}={value}: {names} has {num_classes}, '
                f'{show(source.classes)}; set {key}={num_classes}'
                + ('' if 'classes' in source.metainfo else
                   ', or metainfo=dict(classes=...) of the data sets'))
