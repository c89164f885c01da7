"""Flags that commands share with each other and with mmdet's tools."""
import argparse
from typing import Optional

from mmengine.config import DictAction

# Choices, which the package lists where it uses them.
ENGINES = ('onnxruntime', 'openvino')
CRITERIA = ('loss', 'mAP')
QUANTIZERS = ('lcq', 'uniform', 'lsq')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add what all tools that read a config share with mmdet's.

    Those that run it on their own have no work directory and no launcher.
    """
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value pairs such as '
        'model.exclude="[neck]" train_cfg.max_epochs=2; quote lists and '
        'leave no space in them')


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a config, and those that a runner shares."""
    parser.add_argument(
        '--work-dir', help='where logs, checkpoints and results go')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher')
    # torch.distributed.launch passes the rank under either name.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_bits(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a bit-width."""
    parser.add_argument(
        '--bits',
        type=int,
        metavar='B',
        help='quantize weights and inputs to B bits, 2 to 8; works with any '
        'mmdet config')
    parser.add_argument(
        '--weight-bits',
        type=int,
        metavar='B',
        help='bits of weights; with --act-bits or --bits')
    parser.add_argument(
        '--act-bits',
        type=int,
        metavar='B',
        help='bits of inputs; with --weight-bits or --bits')


def check_bits(key: str, *values: Optional[int]) -> Optional[str]:
    """Return what is wrong with bit-widths, which may be None."""
    for value in values:
        if value is not None and not 2 <= value <= 8:
            return f'{key}={value}: must be an integer from 2 to 8'
    return None
