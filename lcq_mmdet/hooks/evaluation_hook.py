import os
import os.path as osp
from typing import Any, Dict, Optional

from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

FILE = 'before_evaluation.pth'


@HOOKS.register_module()
class EvaluationCheckpointHook(Hook):
    """Let no failing evaluation take trained epochs with it.

    mmengine evaluates an epoch after it has written its checkpoint, if one is
    due. If none is, this writes ``before_evaluation.pth`` to the work
    directory, in place of the one before, where resuming finds it; once
    training is over it is removed. A run without checkpoints stays without.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._saved_at: Optional[int] = None
        self._is_training = False

    def before_train(self, runner: Runner) -> None:
        """Start to watch, where checkpoints are written at all."""
        self._is_training = any(
            isinstance(hook, CheckpointHook) for hook in runner.hooks)

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: Dict[str, Any]) -> None:
        """Remember after how many iterations a checkpoint was written."""
        self._saved_at = checkpoint['meta']['iter']

    def before_val(self, runner: Runner) -> None:
        """Write a checkpoint, unless the last one is as new.

        EMAHook exchanges the weights only later, in ``before_val_epoch``.
        """
        if not self._is_training or self._saved_at == runner.iter:
            return
        # These count what is done; in other hooks they lag behind by one.
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        runner.save_checkpoint(runner.work_dir, FILE, meta=meta)
        _point_to(osp.join(runner.work_dir, FILE), runner.work_dir)

    def after_train(self, runner: Runner) -> None:
        """Remove what a later checkpoint has replaced."""
        self._is_training = False
        _remove_replaced(osp.join(runner.work_dir, FILE), runner.work_dir)


def _last_checkpoint(work_dir: str) -> str:
    """Return the path of the file by which mmengine finds the last one."""
    return osp.join(work_dir, 'last_checkpoint')


@master_only
def _point_to(path: str, work_dir: str) -> None:
    with open(_last_checkpoint(work_dir), 'w', encoding='utf-8') as file:
        file.write(path)


@master_only
def _remove_replaced(path: str, work_dir: str) -> None:
    if not osp.isfile(path):
        return
    with open(_last_checkpoint(work_dir), encoding='utf-8') as file:
        if file.read().strip() != path:
            os.remove(path)
