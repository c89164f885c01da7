import time
from typing import Any, Dict, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch import nn

from lcq_mmdet.compat import plain_param_groups_
from lcq_mmdet.conversion.checkpoint import packed_layers
from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.calibration import (check_reached,
                                                fixed_random_state,
                                                initialize_, observe,
                                                run_forward, sample_batches)
from lcq_mmdet.quantization.layers import lcq_layers, lcq_quantizers
from lcq_mmdet.report.cost import count_macs
from lcq_mmdet.report.layers import layer_table

from .convergence import check_converging, is_saved_now
from .loaded import Loaded, Origins, check_float, classes_remark, settle_
from .soundness import (check_groups, check_optimizer, check_trainable,
                        describe_frozen, describe_norms, rates_remark)

_SEED = 0


@HOOKS.register_module()
class LCQHook(Hook):
    """Calibrate the quantizers before training and check the run.

    Before training, clip and theta of quantizers that have none yet are
    fitted to some training images, the same on every rank; a resumed run
    keeps its own. Those that a checkpoint has for other bits or other levels
    are fitted anew, and the log says which they are and why. Then the layers
    and the state of the run are logged, and a run that cannot give what it
    promises is stopped. Before a test or validation alone only missing values
    are filled in, which evaluates post-training quantization.

    Args:
        num_batches: Training batches to calibrate on, 1 or more.
        require_float: Whether to stop a run that does not start from a
            checkpoint which has all of the quantized modules; the layers
            of a head that depend on the number of classes may differ.
        check_interval: Iterations between checks that the loss and all
            quantized layers are finite and all clips positive; that is also
            checked before each checkpoint.
        keep_quantizers: Whether to start from a checkpoint's quantizers also
            where they were fitted for other bits.

    Raises:
        LCQError: If an option is outside its range.
    """

    def __init__(self,
                 num_batches: int = 8,
                 require_float: bool = True,
                 check_interval: int = 50,
                 keep_quantizers: bool = False) -> None:
        for key, value in (('num_batches', num_batches), ('check_interval',
                                                          check_interval)):
            if not isinstance(value, int) or value < 1:
                raise LCQError(f'default_hooks.lcq.{key}={value!r}: must be '
                               'an integer of 1 or more')
        if not isinstance(keep_quantizers, bool):
            raise LCQError(f'default_hooks.lcq.keep_quantizers='
                           f'{keep_quantizers!r}: must be True or False')
        self.num_batches = num_batches
        self.require_float = require_float
        self.check_interval = check_interval
        self.keep_quantizers = keep_quantizers
        self._loaded: Optional[Loaded] = None
        self._is_prepared = False

    def before_run(self, runner: Runner) -> None:
        """Check that there is something to take care of."""
        if not any(True for _ in lcq_layers(unwrap(runner.model))):
            raise LCQError(
                'default_hooks.lcq: the model has no quantized layer; set '
                "model.type='LCQModel' and model.float_type, or use "
                'lcq_mmdet.apply_lcq')

    def after_load_checkpoint(self, runner: Runner,
                              checkpoint: Dict[str, Any]) -> None:
        """Compare the checkpoint with the model."""
        # Resuming would miss the optimizer's state before before_train.
        if runner._resume:
            check_trainable(packed_layers(checkpoint))
            check_groups(runner.optim_wrapper, checkpoint)
        self._loaded = Loaded.of(
            unwrap(runner.model), checkpoint, runner._resume)

    def before_train(self, runner: Runner) -> None:
        """Calibrate, check and log."""
        model = unwrap(runner.model)
        check_trainable([
            name for name, layer in lcq_layers(model)
            if layer.weight_quantizer.is_packed
        ])
        self._check_float(runner, model)
        origins = settle_(model, self._loaded, self.keep_quantizers)
        in_optimizer = check_optimizer(runner.optim_wrapper, model)
        remark = rates_remark(runner.cfg.get('optim_wrapper'), model)
        if remark:
            runner.logger.warning(f'LCQ: {remark}')
        if runner.cfg.get('compile'):
            plain_param_groups_(runner.optim_wrapper)
        calibrated = self._calibrate(runner, model, origins)
        keys = self._loaded.keys if self._loaded else 'none'
        runner.logger.info('\n'.join([
            'LCQ: the run was checked',
            f'  float checkpoint  {keys}',
            f'  calibration       {calibrated}',
            f'  optimizer         {in_optimizer}',
            '  convolutions      all reached by forward, none fused or '
            'bypassed',
            f'  normalization     {describe_norms(model)}',
            f'  frozen            {describe_frozen(model)}',
        ]))
        self._is_prepared = True

    def before_val(self, runner: Runner) -> None:
        """Calibrate where needed, if no training did."""
        self._prepare_evaluation(runner)

    def before_test(self, runner: Runner) -> None:
        """Calibrate where needed, if no training did."""
        self._prepare_evaluation(runner)

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Stop when training has diverged, before a checkpoint is written."""
        if (self.every_n_train_iters(runner, self.check_interval)
                or is_saved_now(self, runner)):
            check_converging(runner, runner.iter + 1, outputs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop when training has diverged, before a checkpoint is written."""
        check_converging(runner, runner.iter)

    def _prepare_evaluation(self, runner: Runner) -> None:
        if self._is_prepared:
            return
        model = unwrap(runner.model)
        origins = settle_(model, self._loaded, self.keep_quantizers)
        if not origins.num_missing:
            if origins.kept:
                runner.logger.info(f'LCQ: {origins.describe("", [])}')
            return
        self._check_float(runner, model)
        calibrated = self._calibrate(runner, model, origins)
        for hook in runner.hooks:
            # What it evaluates is a copy from before the calibration.
            if isinstance(hook, EMAHook):
                hook.ema_model.module.load_state_dict(model.state_dict())
        runner.logger.info(f'LCQ: post-training quantization, {calibrated}')
        self._is_prepared = True

    def _check_float(self, runner: Runner, model: nn.Module) -> None:
        if self.require_float:
            check_float(model, self._loaded)
        remark = classes_remark(model, self._loaded)
        if remark:
            runner.logger.warning(f'LCQ: {remark}')

    def _calibrate(self, runner: Runner, model: nn.Module,
                   origins: Origins) -> str:
        """Fill in what is missing, log the layers, say what was done."""
        missing = origins.num_missing
        num_batches = self.num_batches if missing else 1
        start = time.perf_counter()
        with fixed_random_state(_SEED):
            with observe(model) as observations, count_macs(model) as macs:
                if missing and is_main_process():
                    runner.logger.info(f'LCQ: calibrating {missing} '
                                       'quantizers')
                num_images = _forward_batches(
                    runner, model, num_batches, show_progress=bool(missing))
            check_reached(observations)
            if missing:
                initialize_(model, observations)
        for _, quantizer in lcq_quantizers(model):
            quantizer.broadcast_()
        runner.logger.info(
            f'LCQ: layers\n{layer_table(model, macs, num_images)}')
        return origins.describe(
            f'fitted to {num_images} images in '
            f'{time.perf_counter() - start:.1f} s',
            self._loaded.unused if self._loaded else [])


def _forward_batches(runner: Runner, model: nn.Module, num_batches: int,
                     show_progress: bool) -> int:
    """Pass random training images through the model; return their number."""
    batches = sample_batches(runner.train_dataloader, num_batches)
    bar = (
        ProgressBar(len(batches))
        if show_progress and is_main_process() else None)
    for batch in batches:
        run_forward(model, batch)
        if bar:
            bar.update()
    if bar:
        bar.file.write('\n')
    return len(batches.dataset)  # type: ignore[arg-type]
