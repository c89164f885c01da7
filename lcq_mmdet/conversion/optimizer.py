"""Parameter groups of an optimizer that trains quantizers."""
import inspect
from typing import Any, Dict, Hashable, List, Mapping, Optional

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch import nn

from .building import without_log

CONSTRUCTOR = 'LCQOptimWrapperConstructor'
#: Learning rate and decay of the quantizers beside the weights'.
CUSTOM_KEYS = {
    '_quantizer.': dict(decay_mult=0.),
    '_quantizer.theta': dict(lr_mult=10., decay_mult=0.),
}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LCQOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Build an optimizer with few groups, and what quantizers need.

    It does what mmengine's own constructor does, and in addition

    * quantizers have no weight decay, and their companders ten times the
      learning rate, unless ``custom_keys`` say otherwise, such as
      ``{'_quantizer.clip': dict(lr_mult=0.1)}``;
    * parameters that several layers share are taken once
      (``bypass_duplicate=True`` is the default);
    * parameters with equal settings are in one group, which torch updates at
      once, where mmengine makes a group of each.

    Args:
        optim_wrapper_cfg: Config of the optimizer's wrapper.
        paramwise_cfg: As mmengine's constructor takes it.
    """

    def __init__(self,
                 optim_wrapper_cfg: Dict[str, Any],
                 paramwise_cfg: Optional[Mapping[str, Any]] = None) -> None:
        paramwise = dict(paramwise_cfg or {})
        paramwise.setdefault('bypass_duplicate', True)
        given = paramwise.get('custom_keys') or {}
        paramwise['custom_keys'] = {
            key: {**_defaults(key), **given.get(key, {})}
            for key in (*CUSTOM_KEYS, *given)
        }
        # A plain one: what is in a ConfigDict, torch.compile cannot trace.
        wrapper = dict(optim_wrapper_cfg)
        wrapper['optimizer'] = dict(wrapper['optimizer'])
        _state_decay_(wrapper['optimizer'])
        super().__init__(wrapper, paramwise)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of a model, and log what its groups are."""
        with without_log():
            wrapper = super().__call__(model)
        groups = wrapper.optimizer.param_groups
        MMLogger.get_current_instance().info(
            'LCQ: the optimizer has '
            f'{sum(len(group["params"]) for group in groups)} parameters in '
            f'{len(groups)} groups of equal settings')
        return wrapper

    def add_params(self,
                   params: List[Dict[str, Any]],
                   module: nn.Module,
                   prefix: str = '',
                   is_dcn_module: Any = None) -> None:
        """Add the groups of a module's parameters, those of a model merged.

        Args:
            params: Groups, extended in place.
            module: The model, or a part of it.
            prefix: Name of the part; the whole model has none.
            is_dcn_module: As mmengine has it.
        """
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            params[:] = merge_groups(params)


def merge_groups(groups: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Put parameters with equal settings into one group.

    Args:
        groups: Parameter groups as an optimizer takes them.

    Returns:
        Groups in the order in which their settings first come up.

    Examples:
        >>> merge_groups([dict(params=[1], lr=.1), dict(params=[2], lr=.2),
        ...               dict(params=[3], lr=.1)])
        [{'lr': 0.1, 'params': [1, 3]}, {'lr': 0.2, 'params': [2]}]
    """
    merged: Dict[Hashable, Dict[str, Any]] = {}
    for group in groups:
        settings = {k: v for k, v in group.items() if k != 'params'}
        same = merged.setdefault(
            tuple(sorted((key, repr(value))
                         for key, value in settings.items())),
            dict(settings, params=[]))
        same['params'] += group['params']
    return [*merged.values()]


def _defaults(key: str) -> Dict[str, float]:
    """Return what holds for a key: mmengine takes the longest one alone."""
    if key in CUSTOM_KEYS:
        return CUSTOM_KEYS[key]
    return CUSTOM_KEYS['_quantizer.'] if '_quantizer.' in key else {}


def _state_decay_(optimizer: Dict[str, Any]) -> None:
    """Write down the default weight decay, which mmengine cannot multiply."""
    if 'weight_decay' in optimizer:
        return
    kind = optimizer.get('type', '')
    with OPTIMIZERS.switch_scope_and_registry(None) as registry:
        kind = registry.get(kind) if isinstance(kind, str) else kind
    parameter = inspect.signature(kind).parameters.get('weight_decay')
    if parameter is not None:
        optimizer['weight_decay'] = parameter.default
