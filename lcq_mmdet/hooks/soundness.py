"""What must be so before a run is worth its time, and how it is described."""
from typing import Any, Dict, List, Mapping, Optional

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lcq_mmdet.conversion.optimizer import CONSTRUCTOR
from lcq_mmdet.errors import LCQError, some
from lcq_mmdet.quantization.layers import lcq_layers, lcq_quantizers


def check_trainable(packed: List[str]) -> None:
    """Raise an ``LCQError`` if layers came from a packed file."""
    if packed:
        raise LCQError(
            f'load_from: the checkpoint is a packed one, it has no float '
            f'weight to train of {some(packed)} layers; start from the '
            'checkpoint (.pth) that it was exported from')


def check_optimizer(wrapper: Any, model: nn.Module) -> str:
    """Check that all trained quantizers are in the optimizer.

    Returns:
        How many there are, in words.
    """
    groups: Any = wrapper.param_groups
    if isinstance(groups, dict):
        groups = [group for part in groups.values() for group in part]
    known = {id(p) for group in groups for p in group['params']}
    trained = {
        f'{name}.{key}': parameter
        for name, quantizer in lcq_quantizers(model)
        for key, parameter in quantizer.named_parameters()
        if parameter.requires_grad
    }
    lost = [name for name, p in trained.items() if id(p) not in known]
    if lost:
        raise LCQError(
            f'optim_wrapper: {some(lost)} quantizer parameters are in no '
            'parameter group; the model was converted after the optimizer '
            'was built, or its constructor leaves them out')
    return f'all {len(trained)} trained quantizer parameters are in it'


def rates_remark(cfg: Any, model: nn.Module) -> Optional[str]:
    """Tell that companders do not learn at the default rate.

    Args:
        cfg: The config's ``optim_wrapper``, if it has one.
        model: A converted model.

    Returns:
        A remark, or ``None`` where there is the constructor that sets the
        rate, or where ``custom_keys`` set one.
    """
    learned = any(q.theta.requires_grad for _, q in lcq_quantizers(model))
    if not learned or not isinstance(cfg, Mapping):
        return None
    custom_keys = (cfg.get('paramwise_cfg') or {}).get('custom_keys') or {}
    if cfg.get('constructor') == CONSTRUCTOR or any(
            '_quantizer.theta' in key for key in custom_keys):
        return None
    return (f'optim_wrapper.constructor={cfg.get("constructor")!r}: no '
            'setting gives theta ten times the learning rate of the weights, '
            f'as --bits does; set the constructor to {CONSTRUCTOR!r}, or a '
            "rate for '_quantizer.theta' in paramwise_cfg.custom_keys")


def check_groups(wrapper: Any, checkpoint: Dict[str, Any]) -> None:
    """Raise an ``LCQError`` for an optimizer with other groups."""
    saved = checkpoint.get('optimizer', {}).get('param_groups')
    # A test alone resumes without an optimizer, several have none in common.
    if (saved is None or not isinstance(wrapper, OptimWrapper)
            or isinstance(wrapper, OptimWrapperDict)):
        return
    own = wrapper.optimizer.param_groups
    if [len(g['params']) for g in saved] != [len(g['params']) for g in own]:
        raise LCQError(
            f'resume: the optimizer of the checkpoint has {len(saved)} '
            f'parameter groups and this one {len(own)}; set '
            'optim_wrapper.constructor as in the run that wrote it '
            "('DefaultOptimWrapperConstructor' is mmengine's), or start "
            'again with load_from')


def following_norms(model: nn.Module) -> List[_BatchNorm]:
    """List the batch norm layers whose statistics follow in training.

    Args:
        model: In any mode, which it keeps.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    found = [
        module for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training
        and module.track_running_stats
    ]
    for module, was_training in modes:
        module.training = was_training
    return found


def describe_norms(model: nn.Module) -> str:
    """Count the layers whose statistics follow, and those that keep them."""
    norms = sum(isinstance(m, _BatchNorm) for m in model.modules())
    trained = len(following_norms(model))
    return (f'{trained} batch norm layers follow their statistics, '
            f'{norms - trained} keep them')


def describe_frozen(model: nn.Module) -> str:
    """Count the quantized layers whose weight is not trained."""
    frozen = [
        name for name, layer in lcq_layers(model)
        if not layer.weight.requires_grad
    ]
    return f'{some(frozen)} quantized layers'
