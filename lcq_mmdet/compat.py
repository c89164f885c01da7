"""What the supported torch and mmengine versions need from us, and why."""
import functools
import pickle
from typing import Any, Callable, Union

import numpy as np
import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from pycocotools.coco import COCO

#: As a name of its own from torch 2.3 on.
is_compiling = getattr(torch.compiler, 'is_compiling', None) or (
    torch._dynamo.is_compiling)
#: From torch 2.7 on; before that, ``torch.export`` does as compiling does.
is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)
_METHODS = {
    HistoryBuffer: ('current', 'max', 'mean', 'min'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _method(owner: type, name: str) -> Callable:
    """Stand in for the ``getattr`` by which pickle saves a class's method."""
    if name in _METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'{owner}.{name} is not allowed')


def plain_param_groups_(
        wrapper: Union[OptimWrapper, OptimWrapperDict]) -> None:
    """Turn an optimizer's parameter groups into plain dictionaries, in place.

    With settings of their own, mmengine makes them of its ``ConfigDict``,
    which ``torch.compile`` (seen with torch 2.13) cannot trace.
    """
    wrappers: Any = (
        wrapper.values()
        if isinstance(wrapper, OptimWrapperDict) else [wrapper])
    for one in wrappers:
        one.optimizer.param_groups = [
            dict(group) for group in one.optimizer.param_groups
        ]


def name_configs() -> None:
    """Let ``_base_ = 'lcq_mmdet::toy/...'`` find the configs of this package.

    mmengine has a list of the packages that it knows.
    """
    MODULE2PACKAGE['lcq_mmdet'] = 'lcq_mmdet'


def allow_checkpoint_globals() -> None:
    """Let ``torch.load`` read mmengine checkpoints with weights_only on.

    From torch 2.6 on weights_only is the default, and mmengine 0.10 does not
    change it; its checkpoints hold the log history in ``HistoryBuffer``
    objects around numpy arrays, and OneCycleLR's state. Just those are
    allowed.
    """
    if not hasattr(torch.serialization, 'add_safe_globals'):
        return
    dtypes = {type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8')}
    allowed = [
        *_METHODS, (_method, 'builtins.getattr'), np.ndarray, np.dtype, *dtypes
    ]
    # numpy 2 moved these; files written with numpy 1 name the old module.
    for name, value in (('_reconstruct', np.array(0.)), ('scalar',
                                                         np.float64(0))):
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
            allowed.append((value.__reduce__()[0], f'{module}.{name}'))
    torch.serialization.add_safe_globals(allowed)


def evaluate_without_info() -> None:
    """Let pycocotools evaluate against annotations that lack what is idle.

    It copies ``info`` of the annotations (2.0.9 and later; not seen to be
    used) and reads ``iscrowd`` of each, and ends with a ``KeyError`` without,
    after the epochs that led there. Many converters write neither. Annotations
    that have both are left as they are.
    """
    load_results = COCO.loadRes

    @functools.wraps(load_results)
    def load(self: COCO, *args: Any, **kwargs: Any) -> COCO:
        self.dataset.setdefault('info', {})
        for annotation in self.dataset.get('annotations', ()):
            annotation.setdefault('iscrowd', 0)
        return load_results(self, *args, **kwargs)

    COCO.loadRes = load
