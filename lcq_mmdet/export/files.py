"""Files that are replaced as a whole or not at all, and what they say."""
import ast
import hashlib
import json
import os
import os.path as osp
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Mapping

from safetensors import SafetensorError

from lcq_mmdet.errors import LCQError


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """Give another name to write to, then put the file at ``path``.

    Where the body raises, what is at ``path`` stays as it was.

    Raises:
        LCQError: If the file cannot be written.
    """
    temporary = f'{path}.tmp'
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise LCQError(f'{path}: cannot be written: {error}') from None
    finally:
        if osp.exists(temporary):
            os.remove(temporary)


def checksum(data: bytes) -> str:
    """Compute BLAKE2b, 8 bytes in hexadecimal."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def checksum_of_text(metadata: Mapping[str, str]) -> str:
    """Compute the checksum of keys and values."""
    return checksum(json.dumps(metadata, sort_keys=True).encode())


def to_literal(values: Mapping[str, Any]) -> str:
    """Write plain data as a Python literal.

    Raises:
        LCQError: If there is anything else among it.
    """
    for key, value in values.items():
        try:
            plain = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            plain = False
        if not plain:
            raise LCQError(f'{key}: cannot be written to the file, it is not '
                           f'made of plain values: {value!r:.60}')
    return repr(dict(values))


def from_literal(text: str) -> Dict[str, Any]:
    """Undo :func:`to_literal`."""
    return dict(ast.literal_eval(text))


def check_version(metadata: Mapping[str, str], known: int) -> None:
    """Raise an ``LCQError`` unless a file's version is the one read here."""
    version = metadata.get('version', '')
    # Not isdigit, which knows of more digits than int does.
    if not (version.isdecimal() and version.isascii() and len(version) < 10):
        raise LCQError('is altered: it has no version')
    if int(version) != known:
        raise LCQError(f'is of format version {version}, and this lcq_mmdet '
                       f'reads {known}: ' +
                       ('install a newer one' if int(version) > known else
                        'export the checkpoint again'))
