"""Patterns of qualified names, as the settings of a conversion have them."""
import difflib
from fnmatch import fnmatchcase
from typing import Any, Collection, Iterable, List, Optional

from lcq_mmdet.errors import LCQError


def matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern covers a layer.

    Args:
        name: Qualified name of the layer.
        pattern: Qualified name of it or of what it lies in, in which ``*``,
            ``?`` and ``[]`` match as in file names.
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f'{pattern}.*')


def matching(name: str, patterns: Iterable[str]) -> Optional[str]:
    """Return the first pattern that covers a layer."""
    return next((p for p in patterns if matches(name, p)), None)


def check_patterns(key: str, patterns: Any, names: Collection[str]) -> None:
    """Check that each pattern covers a layer.

    Args:
        key: What the patterns are set with, for the error message.
        patterns: What was given for a list of patterns.
        names: Qualified names of the layers.

    Raises:
        LCQError: If one covers none, or it is no list of patterns.
    """
    check_pattern_types(key, patterns)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise LCQError(f'{key}: the pattern {pattern!r} matches no layer'
                           f'{_suggestion(pattern, names)}')


def check_pattern_types(key: str, patterns: Any) -> None:
    """Raise an ``LCQError`` unless given a list or tuple of names."""
    if not isinstance(patterns, (list, tuple)):
        raise LCQError(f'{key}={patterns!r}: must be a list of patterns')
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise LCQError(f'{key}={list(patterns)!r}: {pattern!r} is not a '
                           'pattern of names')


def _suggestion(pattern: str, names: Iterable[str]) -> str:
    prefixes: List[str] = []
    for name in names:
        parts = name.split('.')
        prefixes += ['.'.join(parts[:n + 1]) for n in range(len(parts))]
    close = difflib.get_close_matches(pattern, prefixes, n=1)
    return f'; did you mean {close[0]!r}?' if close else ''
