"""What the supported torch and mmengine versions need from us, and why."""
import functools
import pickle
from typing import (Any, Callable, Dict, Hashable, Iterable, List, Optional,
                    Union)

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.utils import digit_version
from pycocotools.coco import COCO
from torch import Tensor
from torch.optim import Optimizer

_FUSED_ON_CPU = (
    digit_version(torch.__version__) >= digit_version('2.4')
    and hasattr(torch.autograd.graph, 'increment_version'))
#: As a name of its own from torch 2.3 on.
is_compiling = getattr(torch.compiler, 'is_compiling', None) or (
    torch._dynamo.is_compiling)
_METHODS = {
    HistoryBuffer: ('current', 'max', 'mean', 'min'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _method(owner: type, name: str) -> Callable:
    """Stand in for the ``getattr`` by which pickle saves a class's method."""
    if name in _METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'{owner}.{name} is not allowed')


def _optimizers(
        wrapper: Union[OptimWrapper, OptimWrapperDict]) -> List[Optimizer]:
    wrappers: Any = (
        wrapper.values()
        if isinstance(wrapper, OptimWrapperDict) else [wrapper])
    return [one.optimizer for one in wrappers]


def plain_param_groups_(
        wrapper: Union[OptimWrapper, OptimWrapperDict]) -> None:
    """Turn an optimizer's parameter groups into plain dictionaries, in place.

    With settings of their own, mmengine makes them of its ``ConfigDict``,
    which ``torch.compile`` (seen with torch 2.13) cannot trace.
    """
    for optimizer in _optimizers(wrapper):
        optimizer.param_groups = [
            dict(group) for group in optimizer.param_groups
        ]


def merge_param_groups_(wrapper: Union[OptimWrapper, OptimWrapperDict],
                        fused: Iterable[Tensor] = ()) -> None:
    """Let steps of torch's optimizers take parameters with equal settings at
    once, in place.

    With settings of their own, mmengine makes a group of each parameter, and
    torch goes through its groups one by one. Outside of steps the groups stay
    as they are, for schedulers and checkpoints.

    Args:
        wrapper: Wrapper of one optimizer or of several.
        fused: Parameters that torch's fused implementation updates on the
            CPU, where torch would go through them one by one and many are
            single numbers: float32 ones in a group of their own, with a
            number for the learning rate, if the settings choose no
            implementation and torch has this one.
    """
    plain_param_groups_(wrapper)
    fused = [*fused]
    for optimizer in _optimizers(wrapper):
        # Others, such as sharded ones, may keep groups of their own.
        if type(optimizer).__module__.startswith('torch.optim.'):
            merged = _MergedGroups(fused)
            optimizer.register_step_pre_hook(merged.put)
            optimizer.register_step_post_hook(merged.take_back)


class _MergedGroups:
    """The groups of one optimizer, merged while it makes a step."""

    def __init__(self, fused: Iterable[Tensor]) -> None:
        self._fused = {
            id(parameter): parameter
            for parameter in fused
            if _FUSED_ON_CPU and parameter.device.type == 'cpu'
            # Some of it leaves out values of other types.
            and parameter.dtype == torch.float32
        }
        self._groups: Optional[List[Dict[str, Any]]] = None
        self._stepped: List[Tensor] = []

    def put(self, optimizer: Optimizer, *_: Any) -> None:
        # They are here already after a step that failed.
        if self._groups is None:
            self._groups = optimizer.param_groups
        merged: Dict[Hashable, Dict[str, Any]] = {}
        self._stepped = []
        for group in self._groups:
            settings = dict(group)
            parameters, is_new = settings.pop('params'), None
            if self._takes_fused(group):
                # SGD takes none together with others before their first step.
                is_new = not optimizer.state.get(parameters[0])
                settings['fused'] = True
                self._stepped += parameters
            # Tensors are not read: each of them equals itself alone.
            values = [
                id(value) if type(value).__hash__ is None else value
                for value in settings.values()
            ]
            same = merged.setdefault((is_new, *zip(settings, values)),
                                     dict(settings, params=[]))
            same['params'] += parameters
        optimizer.param_groups = [*merged.values()]

    def _takes_fused(self, group: Dict[str, Any]) -> bool:
        parameters = group['params']
        return (len(parameters) == 1 and id(parameters[0]) in self._fused
                and group.get('fused', False) is None
                and group.get('foreach', False) is None
                and not group.get('differentiable')
                and not isinstance(group['lr'], Tensor))

    def take_back(self, optimizer: Optimizer, *_: Any) -> None:
        if self._groups is not None:
            optimizer.param_groups, self._groups = self._groups, None
        # The fused step does not tell of its changes, as others do.
        for parameter in self._stepped:
            torch.autograd.graph.increment_version(parameter)
        self._stepped = []


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
