"""Fast implementations of ``lcq_mmdet.functional.lcq_quantize``.

Importing this package registers what the machine can run. The environment
variable ``LCQ_KERNELS=reference`` keeps to the plain torch reference.
"""
import os
import warnings

import torch

from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import KERNELS, lcq_quantize_reference

_CHOICES = ('auto', 'reference')


def _without_triton(*arguments):
    """Say with the first CUDA tensor, and once, that the reference runs."""
    warnings.warn('Triton (for torch 2.4 or later) is not installed: LCQ runs '
                  'as many small operations on the GPU. Install it with '
                  "'pip install triton'.")
    KERNELS['cuda'] = lcq_quantize_reference
    return lcq_quantize_reference(*arguments)


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
    if torch.cuda.is_available():
        try:
            from .cuda import lcq_quantize_cuda
        except ImportError:
            KERNELS['cuda'] = _without_triton
        else:
            KERNELS['cuda'] = lcq_quantize_cuda


_register()
