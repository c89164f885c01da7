"""Checks of a training as a whole."""
import os.path as osp
from contextlib import contextmanager
from typing import Iterator

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.utils import mkdir_or_exist

from lcq_mmdet.datasets.configs import type_name
from lcq_mmdet.errors import LCQError
from lcq_mmdet.report.files import held

from .data import is_first_process


def check_training(cfg: Config) -> None:
    """Check what mmengine would assert once the model is built.

    Raises:
        LCQError: If mixed precision is wanted and there is no GPU.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper) == 'AmpOptimWrapper' and get_device() in ('cpu',
                                                                    'mps'):
        raise LCQError(
            "optim_wrapper.type='AmpOptimWrapper': mixed precision needs a "
            "GPU, and there is none; leave out --amp, or set "
            "optim_wrapper.type='OptimWrapper'")


@contextmanager
def sole_process(cfg: Config, what: str) -> Iterator[None]:
    """Keep a second process out of the work directory while one runs.

    Two trainings would overwrite and delete each other's checkpoints.

    Args:
        cfg: Config with the work directory.
        what: What runs, one word.

    Raises:
        LCQError: If another such process runs in it.
    """
    if not is_first_process(cfg):
        yield
        return
    mkdir_or_exist(cfg.work_dir)
    with held(osp.join(cfg.work_dir, f'.{what}')) as is_held:
        if not is_held:
            raise LCQError(
                f'--work-dir={cfg.work_dir!r}: another {what} runs in it; '
                'wait for it, or choose another directory')
        yield
