"""Train a detector in float or, with --bits, quantized."""
import argparse

from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.runner import find_latest_checkpoint

from lcq_mmdet.cli import (build_runner, check_files, check_training,
                           load_config, sole_process)
from lcq_mmdet.errors import LCQError
from lcq_mmdet.hooks import EvaluationCheckpointHook, keep_teacher
from lcq_mmdet.report.runs import latest_checkpoint


def main(args: argparse.Namespace) -> None:
    setup_cache_size_limit_of_dynamo()
    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise LCQError('auto_scale_lr.base_batch_size: the config has '
                           'none, so --auto-scale-lr cannot scale')
        cfg.auto_scale_lr.enable = True
    resume_from = args.resume
    if resume_from == 'auto':
        # One that is gone is named by the check of files.
        resume_from = (
            latest_checkpoint(cfg.work_dir)
            or find_latest_checkpoint(cfg.work_dir))
    keep_teacher(cfg)
    if resume_from:
        cfg.resume, cfg.load_from = True, resume_from
    check_files(cfg, ('train_dataloader', 'val_dataloader'))
    check_training(cfg)
    with sole_process(cfg, 'training'):
        runner = build_runner(cfg)
        runner.register_hook(EvaluationCheckpointHook())
        runner.train()
