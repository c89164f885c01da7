"""Whether training goes on as it should."""
import math
from typing import Any, Dict, Optional

import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.layers import lcq_layers


def is_saved_now(hook: Hook, runner: Runner) -> bool:
    """Tell whether a checkpoint is written after this iteration."""
    return any(
        isinstance(other, CheckpointHook) and not other.by_epoch
        and (hook.every_n_train_iters(runner, other.interval)
             or other.save_last and hook.is_last_train_iter(runner))
        for other in runner.hooks)


def check_converging(runner: Runner,
                     iteration: int,
                     outputs: Optional[Dict[str, Any]] = None) -> None:
    """Check that quantized layers and loss are finite, and clips positive.

    Args:
        runner: A runner that trains a converted model.
        iteration: Number of iterations so far.
        outputs: What the last one gave.

    Raises:
        LCQError: If not; names the first such parameter in model order.
    """
    after = f'after iteration {iteration}'
    remedy = ("lower the learning rate, or that of '_quantizer.clip' in "
              'optim_wrapper.paramwise_cfg.custom_keys; the last checkpoint '
              'is as it was')
    values: Dict[str, torch.Tensor] = {}
    for name, layer in lcq_layers(unwrap(runner.model)):
        for key, parameter in layer.named_parameters():
            # Of many values the sum tells whether all are finite.
            values[f'{name}.{key}'] = parameter.detach().float().sum()
    for key, value in zip(values, torch.stack([*values.values()]).tolist()):
        is_clip = key.endswith(('_quantizer.clip', '_quantizer.step'))
        if not math.isfinite(value) or (is_clip and value <= 0):
            raise LCQError(f'{key}={value if is_clip else float("nan"):g} '
                           f'{after}: training diverges; {remedy}')
    for key, loss in (outputs or {}).items():
        if key == 'loss' and not loss.isfinite().all():
            raise LCQError(f'{key}={loss.item()} {after}, with all quantized '
                           f'layers finite: {remedy}')
