"""Training steps of a detector: in float, uniformly quantized and with LCQ."""
import os.path as osp
import tempfile
import time
from functools import partial
from typing import Any, Callable, Dict

from mmengine.config import Config
from mmengine.runner import Runner

from lcq_mmdet import recompute
from lcq_mmdet.conversion.building import init_weights_, without_weights
from lcq_mmdet.conversion.model import apply_lcq, float_config
from lcq_mmdet.conversion.optimizer import CONSTRUCTOR
from lcq_mmdet.quantization.calibration import calibrate_

from .memory import peak_allocation

_CALIBRATION_BATCHES = 8


class TrainingSteps:
    """Detectors that differ in their quantizers only, ready for a step.

    They start from random weights and train on one and the same batch.

    Args:
        cfg: Config of a float or quantized detector.
        bits: Bits of weights and inputs, 2 to 8.
        ablate: Whether to train LCQ's also without recomputing quantized
            tensors in the backward pass.

    Attributes:
        calibration: Seconds that the calibration on eight batches took, by
            name of the quantizer; passing images through the network
            included, loading them not.
    """

    def __init__(self,
                 cfg: Config,
                 bits: int,
                 ablate: bool = False) -> None:
        self._ablate = ablate
        self.calibration: Dict[str, float] = {}
        self._runners: Dict[str, Runner] = {}
        # All with groups of equal settings merged, as one group a parameter
        # is slower, which is no matter of quantization.
        configs = {'float': float_config(cfg)}
        configs['float'].optim_wrapper.setdefault('constructor', CONSTRUCTOR)
        for quantizer in ('uniform', 'lcq'):
            # Else a float detector with frozen stages would train less.
            configs[quantizer] = apply_lcq(
                cfg,
                bits,
                quantizer=quantizer,
                frozen_stages=None,
                norm_eval=None)
        with tempfile.TemporaryDirectory() as folder:
            for name, part in configs.items():
                # mmengine keeps visualizers by name, and their folders.
                part.update(
                    work_dir=folder,
                    experiment_name=name + osp.basename(folder),
                    visualizer=None,
                    load_from=None)
                part.model = without_weights(part.model)
                self._runners[name] = Runner.from_cfg(part)
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        batches = iter(loader)
        self._batches = [next(batches) for _ in range(_CALIBRATION_BATCHES)]
        for name, runner in self._runners.items():
            runner.optim_wrapper = runner.build_optim_wrapper(
                runner.optim_wrapper)
            init_weights_(runner.model)
            if name != 'float':
                self.calibration[name] = self._calibrate(runner.model)
            runner.model.train()

    def calls(self) -> Dict[str, Callable[[], Any]]:
        """Return functions that train one step, by name."""
        calls: Dict[str, Callable[[], Any]] = {
            name: partial(runner.model.train_step, self._batches[0],
                          runner.optim_wrapper)
            for name, runner in self._runners.items()
        }
        if self._ablate:
            # A decorator, too.
            calls['lcq, without recomputation'] = recompute.disabled()(
                calls['lcq'])
        return calls

    def peak_memory(self) -> Dict[str, int]:
        """Measure what a step allocates at most in bytes, by name."""
        return {
            name: peak_allocation(step)
            for name, step in self.calls().items()
        }

    def _calibrate(self, model: Any) -> float:
        start = time.perf_counter()
        calibrate_(model, self._batches)
        return time.perf_counter() - start
