"""Checks of a command line's paths, without anything that loads slowly.

Only the standard library is imported here, so that a mistake is told at once.
"""
import os
import os.path as osp
from typing import Any, List, Optional

CONFIGS = ('.py', '.yml', '.yaml', '.json')
CHECKPOINTS = ('.pth', '.pt', '.ckpt', '.onnx', '.safetensors')
# How files begin that were downloaded or copied by mistake.
_POINTER = b'version https://git-lfs'
_PAGES = (b'<!doctype', b'<html', b'<?xml')


def check_paths(args: Any) -> Optional[str]:
    """Check the files and folders that a command's arguments name.

    Args:
        args: Parsed arguments. Looked at, where present: ``config``,
            ``checkpoint``, ``resume``, ``out``, ``out_dir``, ``work_dir``
            and ``work_dirs``.

    Returns:
        What is wrong first, with the remedy; None if nothing is.
    """
    given = vars(args)
    configs = given.get('config') or []
    configs = [configs] if isinstance(configs, str) else configs
    checkpoint = given.get('checkpoint')
    problems: List[Optional[str]] = [
        _check_config(path, checkpoint) for path in configs
    ]
    problems.append(_check_checkpoint('checkpoint', checkpoint))
    if given.get('resume') not in (None, 'auto'):
        problems.append(_check_checkpoint('--resume', given['resume']))
    problems += [
        _check_run(path) for path in given.get('work_dirs') or []
    ]
    if given.get('out'):
        problems.append(_check_out(given['out'], [*configs, checkpoint]))
    problems += [
        _check_folder(key, given[name])
        for key, name in (('--work-dir', 'work_dir'), ('--out-dir', 'out_dir'))
        if given.get(name)
    ]
    return next((problem for problem in problems if problem), None)


def _suffix(path: str) -> str:
    return osp.splitext(path)[1].lower()


def _check_config(path: str, checkpoint: Optional[str]) -> Optional[str]:
    where = f'config={path!r}'
    if '::' in path:
        return None
    if _suffix(path) in CHECKPOINTS:
        if checkpoint and _suffix(checkpoint) in CONFIGS:
            return (f'{where}: is a checkpoint, and checkpoint={checkpoint!r} '
                    'a config; give the config first')
        return f'{where}: is a checkpoint; give its config here'
    if osp.isdir(path):
        configs = _files(path, ('.py', ))
        return (f'{where}: is a folder; give '
                + (osp.join(path, configs[0])
                   if len(configs) == 1 else 'a config file in it'))
    if not osp.isfile(path):
        return f'{where}: no such file'
    if _suffix(path) not in CONFIGS:
        return f'{where}: must be a config: {", ".join(CONFIGS)}'
    return None


def _check_checkpoint(key: str, path: Optional[str]) -> Optional[str]:
    if not path or '://' in path:
        return None
    where = f'{key}={path!r}'
    if osp.isdir(path):
        return (f'{where}: is a folder; give a checkpoint in it'
                f'{_example(path)}')
    if _suffix(path) in CONFIGS:
        return f'{where}: is a config; give a checkpoint, such as epoch_12.pth'
    if not osp.isfile(path):
        if _suffix(path) in ('.onnx', '.safetensors'):
            return f'{where}: no such file; lcq export writes it'
        folder = osp.dirname(path) or '.'
        return (f'{where}: no such file'
                + (f'; give one of its folder{_example(folder)}'
                   if _files(folder, ('.pth', )) else ''))
    with open(path, 'rb') as file:
        start = file.read(64).lstrip().lower()
    if not start:
        return f'{where}: is empty; copy or download it again'
    if start.startswith(_POINTER):
        return (f'{where}: is a pointer of Git LFS and not the checkpoint; '
                "run 'git lfs pull'")
    if start.startswith(_PAGES):
        return (f'{where}: is a web page and not a checkpoint; download it '
                'again, from the address of the file itself')
    return None


def _check_run(path: str) -> Optional[str]:
    where = f'work_dirs={path!r}'
    if osp.isfile(path):
        return (f'{where}: is a file; give the folder of the run, '
                f'{osp.dirname(path) or "."}')
    return None


def _check_out(path: str, inputs: List[Optional[str]]) -> Optional[str]:
    where = f'--out={path!r}'
    if osp.isdir(path):
        return f'{where}: is a folder; give a file in it'
    for other in inputs:
        if (other and osp.exists(other) and osp.exists(path)
                and osp.samefile(path, other)):
            return f'{where}: is what is read, too; choose another name'
    if osp.exists(path) and not os.access(path, os.W_OK):
        return f'{where}: cannot be written; choose another name'
    folder = osp.dirname(path) or '.'
    if not osp.lexists(folder):
        return (f'{where}: cannot be written, there is no folder {folder!r}; '
                'make it first')
    return _check_folder('--out', path, folder)


def _check_folder(key: str, path: str,
                  folder: Optional[str] = None) -> Optional[str]:
    """Check that a folder can be written or made."""
    where, folder = f'{key}={path!r}', path if folder is None else folder
    folder = osp.abspath(folder or '.')
    while not osp.lexists(folder):
        folder = osp.dirname(folder)
    if not osp.isdir(folder):
        return f'{where}: {folder!r} is a file; choose another folder'
    if not os.access(folder, os.W_OK | os.X_OK):
        return f'{where}: {folder!r} cannot be written; choose another folder'
    return None


def _files(folder: str, suffixes: Any) -> List[str]:
    try:
        return sorted(
            name for name in os.listdir(folder) if name.endswith(suffixes))
    except OSError:
        return []


def _example(folder: str) -> str:
    """Name the newest checkpoint of a folder, if there is any."""
    paths = [osp.join(folder, name) for name in _files(folder, ('.pth', ))]
    return f', such as {max(paths, key=osp.getmtime)}' if paths else ''
