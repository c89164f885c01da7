"""Files that are replaced as a whole or not at all, and locks."""
import errno
import logging
import os
import os.path as osp
from contextlib import contextmanager
from typing import Iterator

from filelock import FileLock, Timeout
from mmengine.logging import print_log

from lcq_mmdet.errors import LCQError

_HAS_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


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


@contextmanager
def held(path: str, wait: bool = False) -> Iterator[bool]:
    """Hold a lock, which other processes respect that do the same.

    The kernel drops it with the process, however that ends. Where a file
    system has no locks, a warning says so and it counts as held.

    Args:
        path: File of the lock, made where there is none; it stays.
        wait: Whether to wait for another process that holds it.

    Yields:
        Whether this process holds it.
    """
    lock, is_held = FileLock(path), True
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        is_held = False
    except OSError as error:
        if error.errno not in _HAS_NO_LOCKS:
            raise
        print_log(
            f'LCQ: {path}: the file system has no locks, so nothing keeps '
            'another process out: start only one', 'current', logging.WARNING)
    try:
        yield is_held
    finally:
        lock.release()
