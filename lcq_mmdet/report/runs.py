"""Trained runs: found in their work directories and evaluated."""
import os
import os.path as osp
from typing import Any, Dict, List, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.layers import lcq_layers

from .cost import Cost, cost, count_macs
from .tables import METRICS

_NUM_IMAGES = 8


class Evaluation(NamedTuple):
    """One evaluated run.

    Attributes:
        name: Name of the work directory.
        bits: Bits of weights and inputs, ``'4/4'`` where most layers have 4,
            or ``'float'``.
        metrics: AP values in [0, 1] by the names of ``CocoMetric``.
        cost: Computed cost, on some of the test images.
        seed: Seed of the run's config, if it has one.
        runner: The runner that evaluated, with its model and data.
    """
    name: str
    bits: str
    metrics: Dict[str, float]
    cost: Cost
    seed: Any
    runner: Runner

    def record(self) -> Dict[str, Any]:
        """Return what is worth keeping, as plain data."""
        values = self._asdict()
        del values['runner']
        return dict(values, cost=self.cost._asdict())


def load_run(work_dir: str, launcher: str = 'none') -> Config:
    """Read the config of a work directory, set to its latest checkpoint.

    Args:
        work_dir: Work directory of a training.
        launcher: Launcher of this process, which need not be that of the
            training.

    Raises:
        LCQError: If there is no config or no checkpoint.
    """
    configs = sorted(name for name in (
        os.listdir(work_dir) if osp.isdir(work_dir) else ())
                     if name.endswith('.py'))
    if not configs:
        raise LCQError(f'{work_dir}: there is no config in this work '
                       'directory; train first')
    cfg = Config.fromfile(osp.join(work_dir, configs[-1]))
    cfg.load_from = find_latest_checkpoint(work_dir)
    if cfg.load_from is None:
        raise LCQError(f'{work_dir}: there is no checkpoint in this work '
                       'directory; train first')
    moved = osp.join(work_dir, osp.basename(cfg.load_from))
    if osp.isfile(moved) and not osp.isfile(cfg.load_from):
        cfg.load_from = moved
    cfg.work_dir = work_dir
    cfg.launcher = launcher
    cfg.resume = False
    return cfg


def evaluate(cfg: Config) -> Evaluation:
    """Evaluate the checkpoint ``load_from`` of a config on its test data."""
    runner = Runner.from_cfg(cfg)
    metrics = average_precision(runner)
    model = unwrap(runner.model)
    with count_macs(model) as macs:
        num_images = forward_test_images(runner)
    return Evaluation(
        osp.basename(osp.normpath(cfg.work_dir)), _bits(model), metrics,
        cost(model, macs, num_images),
        cfg.get('randomness', {}).get('seed'), runner)


def average_precision(runner: Runner) -> Dict[str, float]:
    """Evaluate a runner on its test data.

    Returns:
        AP values in [0, 1] by the names of ``CocoMetric``; all are 0 where
        it gives none, as nothing was detected; empty without a metric.
    """
    metrics = runner.test()
    if not metrics and runner.test_loop.evaluator.metrics:
        metrics = {f'bbox_{key}': 0. for key in METRICS}
    return {
        key.rpartition('bbox_')[2]: float(value)
        for key, value in metrics.items() if 'bbox_' in key
    }


@torch.no_grad()
def forward_test_images(runner: Runner) -> int:
    """Pass the first test images through the network; return their number."""
    dataset = runner.test_dataloader.dataset
    images = [dataset[i] for i in range(min(_NUM_IMAGES, len(dataset)))]
    model: Any = unwrap(runner.model)
    data = model.data_preprocessor(pseudo_collate(images), False)
    model(**data, mode='tensor')
    return len(images)


def _bits(model: nn.Module) -> str:
    bits: List[str] = [
        f'{layer.weight_quantizer.bits}/{layer.act_quantizer.bits}'
        for _, layer in lcq_layers(model)
    ]
    return max(bits, key=bits.count) if bits else 'float'
