"""Train a detector in float or, with --bits, quantized."""
import argparse

from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.runner import find_latest_checkpoint

from lcq_mmdet.cli import (add_runner_arguments, build_runner, check_files,
                           check_training, load_config, sole_training)
from lcq_mmdet.errors import LCQError
from lcq_mmdet.hooks import EvaluationCheckpointHook


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config, or mmdet::...')
    add_runner_arguments(parser)
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from the given checkpoint; without a value, from the '
        'latest one in the work directory, if there is any')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    setup_cache_size_limit_of_dynamo()
    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise LCQError('auto_scale_lr.base_batch_size: the config has '
                           'none, so --auto-scale-lr cannot scale')
        cfg.auto_scale_lr.enable = True
    resume_from = args.resume
    if resume_from == 'auto':
        resume_from = find_latest_checkpoint(cfg.work_dir)
    if resume_from:
        cfg.resume, cfg.load_from = True, resume_from
    check_files(cfg, ('train_dataloader', 'val_dataloader'))
    check_training(cfg)
    with sole_training(cfg):
        runner = build_runner(cfg)
        runner.register_hook(EvaluationCheckpointHook())
        runner.train()
