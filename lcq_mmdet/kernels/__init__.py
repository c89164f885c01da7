"""Fast implementations of ``lcq_mmdet.functional.lcq_quantize``.

Importing this package registers what the machine can run. The environment
variable ``LCQ_KERNELS`` or a call of :func:`use` chooses by hand.
"""
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import KERNELS, lcq_quantize_reference

_CHOICES = ('auto', 'numba', 'triton', 'reference')


def _without_triton(*arguments: Any) -> Tensor:
    """Say with the first CUDA tensor, and once, that the reference runs."""
    warnings.warn('Triton (for torch 2.4 or later) is not installed: LCQ runs '
                  'as many small operations on the GPU. Install it with '
                  "'pip install triton'.")
    KERNELS['cuda'] = lcq_quantize_reference
    return lcq_quantize_reference(*arguments)


def use(choice: str) -> None:
    """Choose what computes ``lcq_quantize`` from now on.

    Args:
        choice: ``'auto'``, the fastest there is for each device;
            ``'numba'``, the CPU kernel, and ``'triton'``, the CUDA kernel,
            with the reference elsewhere; or ``'reference'`` everywhere.

    Raises:
        LCQError: If it is none of them, or what it needs is not installed.
    """
    if choice not in _CHOICES:
        raise LCQError(f'LCQ_KERNELS={choice!r}: must be one of '
                       f'{", ".join(_CHOICES)}')
    KERNELS.clear()
    if choice in ('auto', 'numba'):
        try:
            from .cpu import lcq_quantize_cpu
        except ImportError:
            if choice == 'numba':
                raise LCQError("LCQ_KERNELS='numba': numba is not installed; "
                               "install it with 'pip install numba'")
            warnings.warn('numba is not installed: LCQ runs several times '
                          'slower on the CPU. Install it with '
                          "'pip install numba'.")
        else:
            KERNELS['cpu'] = lcq_quantize_cpu
    if choice == 'triton' or choice == 'auto' and torch.cuda.is_available():
        try:
            from .cuda import lcq_quantize_cuda
        except ImportError:
            if choice == 'triton':
                raise LCQError("LCQ_KERNELS='triton': Triton, for torch 2.4 "
                               'or later, is not installed; install it with '
                               "'pip install triton'")
            KERNELS['cuda'] = _without_triton
        else:
            KERNELS['cuda'] = lcq_quantize_cuda


use(os.environ.get('LCQ_KERNELS', 'auto'))
