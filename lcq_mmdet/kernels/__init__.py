"""Fast implementations of ``lcq_mmdet.functional.lcq_quantize``.

Importing this package registers what the machine can run. The environment
variable ``LCQ_KERNELS=reference`` keeps to the plain torch reference.
"""
import os
import warnings

from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import KERNELS

_CHOICES = ('auto', 'reference')


def _register() -> None:
    choice = os.environ.get('LCQ_KERNELS', 'auto')
    if choice not in _CHOICES:
        raise LCQError(f'LCQ_KERNELS={choice!r}: must be one of '
                       f'{", ".join(_CHOICES)}')
    if choice == 'reference':
        return
    try:
        from .cpu import lcq_quantize_cpu
    except ImportError:
        warnings.warn('numba is not installed: LCQ runs several times slower '
                      "on the CPU. Install it with 'pip install numba'.")
    else:
        KERNELS['cpu'] = lcq_quantize_cpu


_register()
