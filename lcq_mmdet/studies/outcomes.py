"""What became of rows that several processes may work on."""
import os
import os.path as osp
import time
from typing import Any, ContextManager, Dict, Optional, Sequence

from mmengine.dist import barrier, is_main_process
from mmengine.utils import mkdir_or_exist

from lcq_mmdet.report.records import to_json, write_text

from .claim import held_by_main, read_json

_DONE, _FAILED = 'row.json', 'failed.json'


class Outcomes:
    """Records of rows, each in the row's folder.

    A row is done when its folder has a ``row.json``. A failure is noted in
    ``failed.json`` for the other processes; one that was there before counts
    for nothing, so that a repeated command tries again.

    Args:
        folders: Folders of the rows, made where they do not exist.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        for folder in folders:
            mkdir_or_exist(folder)
        self._old_failures = {
            folder: read_json(osp.join(folder, _FAILED))
            for folder in folders
        }

    def held(self, folder: str) -> ContextManager[bool]:
        """Hold a row, so that no other process runs it.

        Returns:
            A context; its value is false if another process holds the row.
        """
        return held_by_main(osp.join(folder, '.row'))

    def read(self, folder: str) -> Optional[Dict[str, Any]]:
        """Read the record of a row; ``None`` where it is yet to be run."""
        # Opening a folder makes NFS look whether it has changed, and looking
        # for a file in it does not.
        os.listdir(folder)
        done = read_json(osp.join(folder, _DONE))
        if done is not None:
            return done
        failure = read_json(osp.join(folder, _FAILED))
        # Another process that is done meanwhile removes it.
        if failure in (None, self._old_failures[folder]):
            return None
        return failure['record']

    def write(self, folder: str, record: Dict[str, Any]) -> None:
        """Write the record of a row that is held; an ``error`` is a failure.

        Raises:
            LCQError: If it cannot be written.
        """
        if is_main_process():
            failed = osp.join(folder, _FAILED)
            if 'error' in record:
                # The time tells it from the same failure in another sweep.
                write_text(failed,
                           to_json(dict(time=time.time(), record=record)))
            else:
                write_text(osp.join(folder, _DONE), to_json(record))
                if osp.exists(failed):
                    os.remove(failed)
        barrier()
