"""A work directory that belongs to one command, which may be repeated."""
import hashlib
import json
import os.path as osp
from typing import Any, Dict, Optional

from mmengine.config import Config
from mmengine.dist import barrier, broadcast_object_list, is_main_process
from mmengine.utils import mkdir_or_exist

from lcq_mmdet.errors import LCQError
from lcq_mmdet.report.records import to_json, write_text


def claim_work_dir(cfg: Config, work_dir: str, what: str, **options) -> None:
    """Note what a work directory is for, or check that it is this.

    Args:
        cfg: Config whose results go there; its ``load_from`` is a file.
        work_dir: Made where it does not exist.
        what: What is made there, one word: the note is ``<what>.json``.
        **options: What else must be the same when the command is repeated,
            plain data.

    Raises:
        LCQError: If the work directory belongs to another config, checkpoint
            or options; names the first key that differs.
    """
    settings = cfg.to_dict()
    for key in ('work_dir', 'launcher'):
        settings.pop(key, None)
    own = _flat(json.loads(json.dumps(settings, default=str)))
    own.update(json.loads(json.dumps(options)))
    own['checkpoint_sha256'] = _sha256(cfg.load_from)
    file = osp.join(work_dir, f'{what}.json')
    other = read_json(file)
    if other is None:
        mkdir_or_exist(work_dir)
        if is_main_process():
            write_text(file, to_json(own))
        barrier()
        return
    for key in sorted(own.keys() | other.keys()):
        if own.get(key) != other.get(key):
            raise LCQError(
                f'--work-dir={work_dir!r}: holds a {what} of another '
                f'config: {key} was {other.get(key)!r} and is '
                f'{own.get(key)!r} now; choose another directory')


def read_json(path: str) -> Any:
    """Read a JSON file on the main process; ``None`` without one."""
    value = [None]
    if is_main_process() and osp.isfile(path):
        with open(path, encoding='utf-8') as file:
            value = [json.load(file)]
    broadcast_object_list(value)
    return value[0]


def _flat(value: Any, prefix: str = '') -> Dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: Dict[str, Any] = {}
    for key, part in value.items():
        flat.update(_flat(part, f'{prefix}.{key}' if prefix else str(key)))
    return flat


def _sha256(path: str) -> Optional[str]:
    if not osp.isfile(path):
        return None
    with open(path, 'rb') as file:
        return hashlib.sha256(file.read()).hexdigest()
