"""What the files that a model leaves in say of themselves."""
import ast
import hashlib
import json
from typing import Any, Dict, Mapping

from lcq_mmdet.errors import LCQError


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
