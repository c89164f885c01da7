"""Trainings of a sweep, and what they cost."""
import os.path as osp
from typing import Any, Dict

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

from lcq_mmdet.benchmark.memory import peak_memory
from lcq_mmdet.report.runs import latest_checkpoint

_FLOAT_ITERS = 30


def train_row(cfg: Config) -> Dict[str, Any]:
    """Train, from the last checkpoint in the work directory if there is one.

    Returns:
        ``seconds_per_iter``, and ``peak_memory`` in bytes, ``None`` where
        nothing was left to train.
    """
    # mmengine removes an old one first, and the disk may be full then.
    checkpoint = latest_checkpoint(cfg.work_dir)
    if checkpoint:
        cfg.resume, cfg.load_from = True, checkpoint
    result = _measure_training(cfg)
    if checkpoint and checkpoint == latest_checkpoint(cfg.work_dir):
        result['peak_memory'] = None  # There was nothing left to train.
    return result


def measure_step(cfg: Config) -> Dict[str, Any]:
    """Train the float detector a little, for time and memory of a step."""
    cfg = Config(cfg.to_dict())
    cfg.work_dir = osp.join(cfg.work_dir, 'step')
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=_FLOAT_ITERS)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.param_scheduler = None
    cfg.default_hooks = dict(cfg.get('default_hooks', {}), checkpoint=None)
    return _measure_training(cfg)


def _measure_training(cfg: Config) -> Dict[str, Any]:
    with peak_memory() as peak:
        runner = Runner.from_cfg(cfg)
        runner.train()
    times, _ = runner.message_hub.get_scalar('train/time').data
    return dict(
        seconds_per_iter=float(np.median(times)), peak_memory=peak[0])
