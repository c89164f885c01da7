from typing import Any, List, Optional

from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.calibration import (fixed_random_state,
                                                sample_batches)

from .convergence import is_saved_now
from .soundness import following_norms

_KEY = 'default_hooks.lcq_precise_bn'
_SEED = 0


@HOOKS.register_module()
class LCQPreciseBNHook(Hook):
    """Estimate the statistics of batch normalization anew before evaluation.

    The running statistics lag behind weights that change, and are those of
    the weights before they were averaged. So after each epoch, or before an
    evaluation or a checkpoint of a loop that counts iterations, random
    training images, the same on every rank, pass through the detector in
    training mode, and the means over their batches become the statistics.
    With ``EMAHook`` they are those of the averaged weights, which are
    evaluated and saved as the model.

    Batch normalization that keeps its statistics (``norm_eval``) is left as
    it is.

    Args:
        num_batches: Training batches to estimate on, 1 or more.

    Raises:
        LCQError: If ``num_batches`` is not positive; before training, if no
            batch normalization follows its statistics.
    """

    # Between EMAHook and CheckpointHook.
    priority = 'LOW'

    def __init__(self, num_batches: int = 32) -> None:
        if not isinstance(num_batches, int) or num_batches < 1:
            raise LCQError(f'{_KEY}.num_batches={num_batches!r}: must be an '
                           'integer of 1 or more')
        self.num_batches = num_batches

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to estimate."""
        if not following_norms(unwrap(runner.model)):
            raise LCQError(f'{_KEY}: no batch normalization of the model '
                           'follows its statistics; drop the hook, or set '
                           'model.norm_eval=False')

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Estimate in a loop of iterations, where one is about to be used."""
        loop, done = runner.train_loop, runner.iter + 1
        if not isinstance(loop, IterBasedTrainLoop):
            return
        is_evaluated = (
            runner.val_loop is not None and done >= loop.val_begin
            and done % loop.val_interval == 0)
        if is_evaluated or is_saved_now(self, runner) or (
                done == loop.max_iters):
            self._estimate(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Estimate, before the epoch's checkpoint and evaluation."""
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._estimate(runner)

    def _estimate(self, runner: Runner) -> None:
        model = unwrap(runner.model)
        norms = following_norms(model)
        ema: Optional[EMAHook] = next(
            (hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)
        with fixed_random_state(_SEED):
            batches = sample_batches(runner.train_dataloader, self.num_batches)
            if ema is None:
                estimate_norms_(model, norms, batches)
                return
            # It puts the averaged weights into the model, and back after.
            ema.before_val_epoch(runner)
            estimate_norms_(model, norms, batches)
            if not ema.ema_model.update_buffers:
                _copy_norms_(model, ema.ema_model.module, norms)
            ema.after_val_epoch(runner)


def estimate_norms_(model: Any, norms: List[_BatchNorm],
                    batches: Any) -> None:
    """Set statistics to the means over batches, in place.

    Args:
        model: A model of mmengine's in training mode.
        norms: Layers of it; one that no batch reaches stays as it is.
        batches: What its data loader gives, one or more.
    """
    before = [[value.clone() for value in _statistics(norm)]
              for norm in norms]
    # Batches are wrapped, for update_bn would take the first of a list.
    update_bn(({'batch': batch} for batch in batches), _Training(model, norms))
    for norm, values in zip(norms, before):
        if not norm.num_batches_tracked:
            _fill_(norm, values)


class _Training(nn.Module):
    """The forward pass of training; of its modules only some are shown."""

    def __init__(self, model: Any, shown: List[_BatchNorm]) -> None:
        super().__init__()
        self._shown = nn.ModuleList(shown)
        self._hidden = [model]

    def forward(self, wrapped: Any) -> None:
        model = self._hidden[0]
        model._run_forward(
            model.data_preprocessor(wrapped['batch'], True), mode='loss')


def _statistics(norm: Any) -> List[Tensor]:
    return [norm.running_mean, norm.running_var, norm.num_batches_tracked]


def _fill_(norm: nn.Module, values: List[Tensor]) -> None:
    for tensor, value in zip(_statistics(norm), values):
        tensor.copy_(value)


def _copy_norms_(source: nn.Module, target: nn.Module,
                 norms: List[_BatchNorm]) -> None:
    for own, copied in zip(source.modules(), target.modules()):
        if any(own is norm for norm in norms):
            _fill_(copied, _statistics(own))
