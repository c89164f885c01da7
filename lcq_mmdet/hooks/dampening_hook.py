import math
from typing import Any, Dict, List, Optional

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.layers import QuantizedLayer, lcq_layers

_KEY = 'default_hooks.lcq_dampening'


@HOOKS.register_module()
class LCQDampeningHook(Hook):
    """Draw weights to their levels, so that they do not go back and forth.

    A weight near the border of two levels may take them in turns, and batch
    normalization follows neither. The loss ``loss_dampening`` is added to the
    detector's own: the sum of (w - Q(w))^2 over the weights between the
    outermost levels, through which only w learns, times a factor that rises
    from 0 to ``weight`` along half a cosine. M. Nagel et al., "Overcoming
    Oscillations in Quantization-Aware Training", ICML 2022.

    Args:
        weight: Factor at the end of training, positive.

    Raises:
        LCQError: If ``weight`` is not a positive number; before training, if
            no quantized weight is trained.
    """

    def __init__(self, weight: float = 0.001) -> None:
        if isinstance(weight, bool) or not isinstance(
                weight, (int, float)) or not 0 < weight < float('inf'):
            raise LCQError(f'{_KEY}.weight={weight!r}: must be a positive '
                           'number')
        self.weight = weight
        self._factor = 0.
        self._layers: List[QuantizedLayer] = []
        self._handle: Optional[RemovableHandle] = None

    def before_train(self, runner: Runner) -> None:
        """Begin to add the loss.

        Not before: copies of the model that other hooks make in ``before_run``
        are to have no part in this.
        """
        model = unwrap(runner.model)
        self._layers = [
            layer for _, layer in lcq_layers(model)
            if layer.weight.requires_grad
        ]
        if not self._layers:
            raise LCQError(f'{_KEY}: no quantized weight is trained; drop the '
                           'hook')
        self._handle = model.register_forward_hook(
            self._add_loss, with_kwargs=True)

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Any = None) -> None:
        """Raise the factor, by the iterations of all runs so far."""
        done = runner.iter / runner.max_iters
        self._factor = self.weight * (1 - math.cos(math.pi * done)) / 2

    def after_train(self, runner: Runner) -> None:
        """Stop."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._layers = None, []

    def _add_loss(self, model: nn.Module, args: Any, kwargs: Dict[str, Any],
                  losses: Any) -> Any:
        if kwargs.get('mode') != 'loss' or not torch.is_grad_enabled():
            return losses
        parts = [distance_to_levels(layer) for layer in self._layers]
        return dict(
            losses, loss_dampening=self._factor * torch.stack(parts).sum())


def distance_to_levels(layer: QuantizedLayer) -> Tensor:
    """Sum the squared distances of a weight to its levels.

    Args:
        layer: A layer whose weight's quantizer is filled in.

    Returns:
        Sum over the weights between the outermost levels, shape (); its
        gradient takes the levels for constants.
    """
    with torch.no_grad():
        levels = layer.weight_quantizer(layer.weight)
        magnitude = layer.weight_quantizer.magnitude(layer.weight)
        is_between = (magnitude >= 0) & (magnitude <= 1)
    return (is_between * (layer.weight - levels)).square().sum()
