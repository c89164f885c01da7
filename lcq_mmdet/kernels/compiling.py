"""Compiling with numba, wherever the package lies."""
import warnings
from typing import Any, Callable

import numba

_NO_FOLDER = (
    'numba finds no folder to keep compiled kernels in: each process compiles '
    'them anew, for about a minute. Set NUMBA_CACHE_DIR to one that can be '
    'written.')


def kept(**options: Any) -> Callable:
    """Compile a function, and keep what is compiled for other processes.

    It lies beside the source; where that is read-only, in the user's cache.
    Where neither can be written, nothing is kept, which is told.

    Args:
        **options: Options of ``numba.njit``.
    """

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            warnings.warn(_NO_FOLDER)
            return numba.njit(**options)(function)

    return decorate
