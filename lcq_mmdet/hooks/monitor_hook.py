from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lcq_mmdet.conversion.selection import select_layers, unwrap
from lcq_mmdet.errors import LCQError
from lcq_mmdet.report.statistics import QuantizerStatistics


@HOOKS.register_module()
class LCQMonitorHook(Hook):
    """Log how the quantizers fit what they get.

    Every ``interval`` iterations the visualizer's backends get, for the
    weight and the input of each quantized layer, the scalars of
    :meth:`QuantizerStatistics.result
    <lcq_mmdet.report.statistics.QuantizerStatistics.result>` under names such
    as ``lcq/backbone.conv1.act_quantizer/clip``. They are of the model's
    first forward pass in the iteration, before the optimizer's step: all
    calls of a shared layer together, recomputation for gradient checkpointing
    left out, and of several processes the main one's images alone.

    A step never waits for them. They travel to the host while training goes
    on, and are logged at the next observed iteration or at the end of the
    epoch, with the number of the iteration they are of, counted as
    ``LoggerHook`` does.

    Args:
        interval: Iterations between observations, 1 or more.
        layers: Patterns of quantized layers to observe, as
            :func:`~lcq_mmdet.convert_` takes them.

    Raises:
        LCQError: If ``interval`` is not positive; before the run, if a
            pattern matches no quantized layer.
    """

    def __init__(self,
                 interval: int = 50,
                 layers: Sequence[str] = ('*', )) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise LCQError(f'default_hooks.lcq_monitor.interval={interval!r}: '
                           'must be an integer of 1 or more')
        self.interval = interval
        self.layers = layers
        self._handles: List[RemovableHandle] = []
        self._statistics: Dict[str, QuantizerStatistics] = {}
        self._measured: Optional[_Measurement] = None

    def before_run(self, runner: Runner) -> None:
        """Check that there is something to observe."""
        select_layers(
            unwrap(runner.model), self.layers,
            'default_hooks.lcq_monitor.layers')

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Any = None) -> None:
        """Begin to observe, if it is time to."""
        if not (is_main_process()
                and self.every_n_train_iters(runner, self.interval)):
            return
        self._log(runner)
        model = unwrap(runner.model)
        for name, layer in select_layers(model, self.layers).items():
            for key, quantizer in layer.quantizers():
                statistics = QuantizerStatistics(quantizer)
                self._statistics[f'lcq/{name}.{key}'] = statistics
                self._handles.append(
                    quantizer.register_forward_hook(
                        lambda _, inputs, output, s=statistics: s.update(
                            inputs[0], output)))
        # Gradient checkpointing repeats forward passes in the backward pass.
        self._handles.append(
            model.register_forward_hook(lambda *_: self._stop()))

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Send what was observed on its way to the host."""
        self._stop()
        scalars = {
            f'{name}/{key}': value
            for name, statistics in self._statistics.items()
            for key, value in statistics.result().items()
        }
        if scalars:
            self._measured = _Measurement(runner.iter + 1, scalars)
        self._statistics.clear()

    def after_train_epoch(self, runner: Runner) -> None:
        """Log what is not logged yet."""
        self._log(runner)

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _log(self, runner: Runner) -> None:
        if self._measured is not None:
            runner.visualizer.add_scalars(
                self._measured.read(), step=self._measured.step)
            self._measured = None


class _Measurement:
    """Scalars on their way from a device to the host."""

    def __init__(self, step: int, scalars: Dict[str, Tensor]) -> None:
        self.step = step
        self._names = list(scalars)
        values = torch.stack(list(scalars.values()))
        # From a GPU this copies to pinned memory, behind the host's back.
        self._values = values.to('cpu', non_blocking=values.is_cuda)
        self._event = (
            torch.cuda.current_stream(values.device).record_event()
            if values.is_cuda else None)

    def read(self) -> Dict[str, float]:
        if self._event is not None:
            self._event.synchronize()
        return dict(zip(self._names, self._values.tolist()))
