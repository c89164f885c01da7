"""From arguments to a config, and from that to a runner."""
import argparse
import os
import os.path as osp
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Mapping

from mmengine.config import Config
from mmengine.dist import init_dist, is_distributed
from mmengine.hub import get_config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing

import lcq_mmdet
from lcq_mmdet.conversion.model import apply_lcq
from lcq_mmdet.errors import LCQError

_CONFIGS = osp.join(osp.dirname(lcq_mmdet.__file__), '.mim', 'configs')
# Bit-widths, and how they are named in a work directory.
_BITS = {'bits': '_{}bit', 'weight_bits': '_w{}', 'act_bits': '_a{}'}


def load_config(args: argparse.Namespace, suffix: str = '') -> Config:
    """Read the config that the arguments name and apply their options.

    ``args.config`` is a path or ``mmdet::...``; with a bit-width, the latter
    starts from mmdet's published checkpoint unless ``load_from`` is set.
    The default work directory is that of the config, ``suffix`` and the
    bit-width: a quantized run replaces nothing of the float one.

    Args:
        args: Those of a command.
        suffix: What comes after the config's name in the default work
            directory.

    Raises:
        LCQError: If there is no such config, or a bit-width is invalid.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    bits = {key: getattr(args, key) for key in _BITS}
    bits = {key: value for key, value in bits.items() if value is not None}
    cfg = read_config(args.config, pretrained=bool(bits))
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    # A sweep has lists of bits, and applies them to copies of the config.
    if any(isinstance(value, int) for value in bits.values()):
        _check_both(bits, cfg.get('model') or {})
        cfg = apply_lcq(cfg, **{'bits': None, **bits})
        suffix += ''.join(
            _BITS[key].format(value) for key, value in bits.items())
    cfg.launcher = args.launcher
    if args.work_dir or not cfg.get('work_dir'):
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = args.work_dir or osp.join('work_dirs', name + suffix)
    return cfg


def _check_both(given: Dict[str, int], model: Mapping[str, Any]) -> None:
    """Check that bits of weights and of inputs are known for a float config.

    Args:
        given: Bits by key, of the command line.
        model: The model's part of the config, which may have others.
    """
    for key, other in (('weight_bits', 'act_bits'),
                       ('act_bits', 'weight_bits')):
        if key in given and model.get('type') != 'LCQModel' and not any(
                name in given or name in model for name in ('bits', other)):
            raise LCQError(f'--{key.replace("_", "-")}: the config has no '
                           f'other bits; add --{other.replace("_", "-")}, or '
                           '--bits for both')


def read_config(path: str, pretrained: bool = False) -> Config:
    """Read the config at ``path``, or that of a name ``mmdet::...``.

    ``lcq_mmdet::...`` names one of this package.

    Args:
        path: Path or name.
        pretrained: Whether one of mmdet's loads its published checkpoint.

    Raises:
        LCQError: If there is none.
    """
    if '::' not in path:
        if not osp.isfile(path):
            raise LCQError(f'config={path!r}: no such file')
        with _imports_told(path):
            return Config.fromfile(path)
    package, _, name = path.partition('::')
    if package == 'lcq_mmdet':
        # mmengine knows only its own packages by name.
        return read_config(osp.join(_CONFIGS, name))
    with _imports_told(path):
        try:
            cfg = get_config(path, pretrained)
        except (AssertionError, FileNotFoundError, ValueError) as error:
            raise LCQError(f'config={path!r}: {error}') from None
    if pretrained and cfg.get('load_from') is None:
        cfg.load_from = cfg.pop('model_path')
    return cfg


@contextmanager
def _imports_told(path: str) -> Iterator[None]:
    """Name the package that a config needs and that is not installed."""
    try:
        yield
    except ImportError as error:
        cause = error.__cause__ or error.__context__ or error
        raise LCQError(f'config={path!r}: needs a package that cannot be '
                       f'imported: {str(cause).splitlines()[0]}; install '
                       'it') from None


def join_launcher(cfg: Config) -> None:
    """Join the other processes of a launcher, as a runner does when built.

    Before that, every process takes itself for the main one.
    """
    if cfg.launcher != 'none' and not is_distributed():
        env_cfg = cfg.get('env_cfg', {})
        set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
        init_dist(cfg.launcher, **env_cfg.get('dist_cfg', {}))


class BriefRunner(Runner):
    """Train and test as mmengine does; the log lists each hook once.

    mmengine's own list, 60 lines and more with every hook at every stage, is
    there with ``log_level='DEBUG'``.
    """

    def get_hooks_info(self) -> str:
        """Name the hooks, from the first to the last."""
        if str(self.cfg.get('log_level')).upper() == 'DEBUG':
            return super().get_hooks_info()
        return ', '.join(type(hook).__name__ for hook in self.hooks)


class TestRunner(BriefRunner):
    """Test, and write no config into the work directory.

    The one that is there is of the training, and reports are made from it. A
    test of a graph has another: the graph is its model.
    """

    def dump_config(self) -> None:
        """Do nothing; the log has the config."""


def build_runner(cfg: Config, test_only: bool = False) -> Runner:
    """Build the runner that the config asks for.

    Args:
        cfg: Config of a run.
        test_only: Whether nothing is trained.
    """
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return (TestRunner if test_only else BriefRunner).from_cfg(cfg)
