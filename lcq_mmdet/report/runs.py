"""Trained runs: found in their work directories and evaluated."""
import os
import os.path as osp
from statistics import mean
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from lcq_mmdet.conversion.building import build_model, without_weights
from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.config import BITS_KEYS
from lcq_mmdet.quantization.layers import lcq_layers

from .cost import Cost, cost, count_macs
from .tables import METRICS

_NUM_IMAGES = 8


class Evaluation(NamedTuple):
    """One evaluated run.

    Attributes:
        name: Name of the work directory.
        bits: What :func:`bits_text` calls its bits.
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


def latest_checkpoint(work_dir: str) -> Optional[str]:
    """Find the last checkpoint of a work directory, which may have moved.

    Returns:
        Its path; ``None`` where there is none.
    """
    path = find_latest_checkpoint(work_dir)
    moved = path and osp.join(work_dir, osp.basename(path))
    return next((name for name in (moved, path) if name and osp.isfile(name)),
                None)


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
    cfg.load_from = latest_checkpoint(work_dir)
    if cfg.load_from is None:
        raise LCQError(f'{work_dir}: there is no checkpoint in this work '
                       'directory; train first')
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
        osp.basename(osp.normpath(cfg.work_dir)), bits_text(cfg, model),
        metrics, cost(model, macs, num_images),
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


def bits_text(cfg: Config, model: nn.Module) -> str:
    """Tell the bits of weights and inputs of a model, built from its config.

    Returns:
        ``'4/4'`` where most layers have 4, ``'mixed 3.0/4.7'`` with means
        where settings by pattern give some other bits, or ``'float'``. Each
        weight counts once in the mean of the weights, and each layer in that
        of the inputs.
    """
    bits: List[str] = [
        f'{layer.weight_quantizer.bits}/{layer.act_quantizer.bits}'
        for _, layer in lcq_layers(model)
    ]
    if not bits:
        return 'float'
    if _sets_bits(cfg) and len(set(bits)) > 1:
        return 'mixed {:.1f}/{:.1f}'.format(*_mean_bits(model))
    return max(bits, key=bits.count)


def mixed_bits(cfg: Config) -> Dict[str, Any]:
    """Label the run of a config that gives layers different bits.

    Returns:
        ``bits`` as :func:`bits_text` has them, ``weight_bits`` and
        ``act_bits``, the means that are in it; nothing where
        bits are not mixed.
    """
    if not _sets_bits(cfg):
        return {}
    model = build_model(Config(dict(cfg, model=without_weights(cfg.model))))
    bits = bits_text(cfg, model)
    if not bits.startswith('mixed'):
        return {}
    weight_bits, act_bits = _mean_bits(model)
    return dict(bits=bits, weight_bits=weight_bits, act_bits=act_bits)


def _sets_bits(cfg: Config) -> bool:
    """Tell whether settings by pattern name bits."""
    overrides = cfg.model.get('overrides') or {}
    return any(key in settings for settings in overrides.values()
               for key in BITS_KEYS)


def _mean_bits(model: nn.Module) -> Tuple[float, float]:
    layers = [layer for _, layer in lcq_layers(model)]
    sizes = [layer.weight.numel() for layer in layers]
    total = sum(layer.weight_quantizer.bits * size
                for layer, size in zip(layers, sizes))
    return (total / sum(sizes),
            mean(layer.act_quantizer.bits for layer in layers))
