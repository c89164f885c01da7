"""Files that are replaced as a whole or not at all."""
import os
import os.path as osp
from contextlib import contextmanager
from typing import Iterator

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
    except OSError as error:
        raise LCQError(f'{path}: cannot be written: '
                       f'{error.strerror or error}; what was there is as it '
                       'was') from None
    finally:
        if osp.exists(temporary):
            os.remove(temporary)
