"""A work directory that belongs to one command, which may be repeated.

Several processes may run the same command in it at a time.
"""
import hashlib
import json
import os.path as osp
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, TypeVar

from mmengine.config import Config
from mmengine.dist import barrier, broadcast_object_list, is_main_process
from mmengine.utils import mkdir_or_exist

from lcq_mmdet.errors import LCQError
from lcq_mmdet.report.files import held
from lcq_mmdet.report.records import to_json, write_text

_Value = TypeVar('_Value')


def claim_work_dir(cfg: Config, work_dir: str, what: str,
                   **options: Any) -> None:
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
    mkdir_or_exist(work_dir)
    with held_by_main(osp.join(work_dir, f'.{what}'), wait=True):
        other = read_json(file)
        if other is None and is_main_process():
            write_text(file, to_json(own))
        barrier()
    if other is None:
        return
    for key in sorted(own.keys() | other.keys()):
        if own.get(key) != other.get(key):
            raise LCQError(
                f'--work-dir={work_dir!r}: holds a {what} of another '
                f'config: {key} was {other.get(key)!r} and is '
                f'{own.get(key)!r} now; choose another directory')


def read_json(path: str) -> Any:
    """Read a JSON file on the main process; ``None`` without one."""

    def read() -> Any:
        if not osp.isfile(path):
            return None
        with open(path, encoding='utf-8') as file:
            return json.load(file)

    return on_main(read)


def on_main(call: Callable[[], _Value]) -> _Value:
    """Call a function on the main process, and return its result on all."""
    value: Any = [call() if is_main_process() else None]
    broadcast_object_list(value)
    return value[0]


@contextmanager
def held_by_main(path: str, wait: bool = False) -> Iterator[bool]:
    """Hold a lock on the main process, as :func:`held` does.

    Yields:
        Whether it is held, on all processes of a launcher.
    """
    with ExitStack() as stack:
        yield on_main(lambda: stack.enter_context(held(path, wait)))


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
