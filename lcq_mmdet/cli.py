"""What the command line tools share."""
import argparse
import errno
import os
import os.path as osp
import sys
from typing import Any, Callable, Dict, Iterator, Sequence, Tuple

from mmengine.config import Config, DictAction
from mmengine.dist import init_dist, is_distributed
from mmengine.hub import get_config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing

from lcq_mmdet.conversion.model import apply_lcq
from lcq_mmdet.errors import LCQError

_BITS = ('bits', 'weight_bits', 'act_bits')


def run_tool(main: Callable[[], Any]) -> None:
    """Call ``main``; exit with 2 after a mistake or on a full disk.

    Either is told in one line.
    """
    try:
        main()
    except LCQError as error:
        sys.exit(_report_error(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(_report_error(f'{error}; make room and repeat the command'))


def _report_error(error: object) -> int:
    print(f'error: {error}', file=sys.stderr)
    return 2


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all tools share with mmdet's."""
    parser.add_argument(
        '--work-dir', help='where logs, checkpoints and results go')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value pairs such as '
        'model.exclude="[neck]" train_cfg.max_epochs=2; quote lists and '
        'leave no space in them')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher')
    # torch.distributed.launch passes the rank under either name.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the shared flags, and those of a bit-width."""
    add_launcher_arguments(parser)
    parser.add_argument(
        '--bits',
        type=int,
        metavar='B',
        help='quantize weights and inputs to B bits, 2 to 8; works with any '
        'mmdet config')
    parser.add_argument(
        '--weight-bits', type=int, metavar='B', help='bits of weights only')
    parser.add_argument(
        '--act-bits', type=int, metavar='B', help='bits of inputs only')


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that the arguments name and apply their options.

    ``args.config`` is a path or ``mmdet::...``; with a bit-width, the latter
    starts from mmdet's published checkpoint unless ``load_from`` is set.

    Raises:
        LCQError: If there is no such config or a bit-width is invalid.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    bits = {key: getattr(args, key) for key in _BITS}
    bits = {key: value for key, value in bits.items() if value is not None}
    cfg = read_config(args.config, pretrained=bool(bits))
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    # A sweep has lists of bits, and applies them to copies of the config.
    if any(isinstance(value, int) for value in bits.values()):
        cfg = apply_lcq(cfg, **{'bits': None, **bits})
    cfg.launcher = args.launcher
    if args.work_dir or not cfg.get('work_dir'):
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = args.work_dir or osp.join('work_dirs', name)
    return cfg


def read_config(path: str, pretrained: bool = False) -> Config:
    """Read the config at ``path``, or mmdet's of the name ``mmdet::...``.

    Args:
        path: Path or name.
        pretrained: Whether one of mmdet's loads its published checkpoint.

    Raises:
        LCQError: If there is none.
    """
    if '::' not in path:
        if not osp.isfile(path):
            raise LCQError(f'config={path!r}: no such file')
        return Config.fromfile(path)
    try:
        cfg = get_config(path, pretrained)
    except (AssertionError, FileNotFoundError, ValueError) as error:
        raise LCQError(f'config={path!r}: {error}') from None
    if pretrained and cfg.get('load_from') is None:
        cfg.load_from = cfg.pop('model_path')
    return cfg


def join_launcher(cfg: Config) -> None:
    """Join the other processes of a launcher, as a runner does when built.

    Before that, every process takes itself for the main one.
    """
    if cfg.launcher != 'none' and not is_distributed():
        env_cfg = cfg.get('env_cfg', {})
        set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
        init_dist(cfg.launcher, **env_cfg.get('dist_cfg', {}))


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for."""
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def check_files(cfg: Config, dataloaders: Sequence[str]) -> None:
    """Check that local data and checkpoint exist, before any long work.

    Args:
        cfg: Config of an mmdet run.
        dataloaders: Keys of the data loaders that will be used.

    Raises:
        LCQError: If a file or folder is missing; says how to get it.
    """
    for key in dataloaders:
        for where, dataset in _datasets(key, cfg.get(key) or {}):
            for name, path in _paths(dataset):
                if '://' not in path and not osp.exists(path):
                    raise LCQError(
                        f'{where}.{name}: {path!r} does not exist; '
                        f'{_how_to_get(dataset)}')
    load_from = cfg.get('load_from')
    if load_from and '://' not in load_from and not osp.isfile(load_from):
        raise LCQError(f'load_from={load_from!r}: no such file; train the '
                       'float detector first, or name its checkpoint')


def _datasets(where: str, cfg: Dict) -> Iterator[Tuple[str, Dict]]:
    """Iterate over the innermost dataset configs and their keys."""
    inner = cfg.get('datasets', cfg.get('dataset'))
    if inner is None:
        yield where, cfg
    elif isinstance(inner, dict):
        yield from _datasets(f'{where}.dataset', inner)
    else:
        for index, part in enumerate(inner):
            yield from _datasets(f'{where}.datasets.{index}', part)


def _paths(dataset: Dict) -> Iterator[Tuple[str, str]]:
    root = dataset.get('data_root') or ''
    if dataset.get('ann_file'):
        yield 'ann_file', osp.join(root, dataset['ann_file'])
    for name, prefix in (dataset.get('data_prefix') or {}).items():
        yield f'data_prefix.{name}', osp.join(root, prefix)


def _how_to_get(dataset: Dict) -> str:
    root = (dataset.get('data_root') or '.').rstrip('/')
    if dataset.get('type') == 'ToyCocoDataset':
        return f"generate it: 'python tools/make_toy_coco.py {root}'"
    return ('get train2017, val2017 and annotations of COCO from '
            f'https://cocodataset.org/#download and unpack them in {root!r}, '
            'or set data_root; without COCO, try '
            'configs/toy/retinanet_r18_lcq_4bit_toy.py')
