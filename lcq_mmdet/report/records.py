"""Results as files: complete, or not written at all."""
import csv
import io
import json
import os
import os.path as osp
import platform
import shlex
import subprocess
import sys
from typing import Any, Dict, Mapping, Sequence

import torch
from mmengine.utils.dl_utils import collect_env

import lcq_mmdet

from .files import replacing
from .tables import map_table


def write_text(path: str, text: str) -> None:
    """Write a file under another name, then rename it.

    Raises:
        LCQError: If it cannot be written; a file at ``path`` is as it was.
    """
    with replacing(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write(text)


def to_json(value: Any) -> str:
    """Write plain data as a JSON file's text."""
    return json.dumps(value, indent=2) + '\n'


def write_record(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the command, commit, versions and hardware as JSON."""
    env = collect_env()
    versions = {
        key: env[key]
        for key in ('Python', 'PyTorch', 'OpenCV', 'MMEngine') if key in env
    }
    record = dict(
        command=_command(),
        commit=_commit(),
        versions=dict(lcq_mmdet=lcq_mmdet.__version__, **versions),
        hardware=dict(
            **_processor(),
            cpus=os.cpu_count(),
            threads=torch.get_num_threads(),
            gpus=_gpus(env)),
        rows=rows)
    write_text(path, to_json(record))


def _processor() -> Dict[str, Any]:
    """Name the CPU, and whether it has 8-bit dot products; on Linux."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            lines = [line.partition(':') for line in file]
    except OSError:
        return {}
    about = {key.strip(): value.strip() for key, _, value in lines}
    flags = about.get('flags', '').split()
    return dict(
        cpu=about.get('model name', platform.machine()),
        vnni=any(flag.endswith('vnni') for flag in flags))


def _command() -> str:
    """Return the command line of this process, ``lcq ...`` as it was typed."""
    program, *rest = sys.argv
    start = (
        program if program.startswith('lcq ') else shlex.join(
            [osp.basename(sys.executable), program]))
    return f'{start} {shlex.join(rest)}'.strip()


def write_csv(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, a column a value; nested keys are joined by dots."""
    flat = [_flatten(row) for row in rows]
    columns: Dict[str, None] = {}
    for row in flat:
        columns.update(dict.fromkeys(row))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator='\n')
    writer.writeheader()
    writer.writerows(flat)
    write_text(path, text.getvalue())


def write_markdown(path: str, rows: Sequence[Mapping[str, Any]],
                   pictures: Mapping[str, str]) -> None:
    """Write the table, the errors of failed rows, and pictures by title."""
    lines = ['# mAP per bit-width', '', map_table(rows, markdown=True), '']
    errors = [row for row in rows if 'error' in row]
    if errors:
        lines += ['## Failed rows', '']
        lines += [
            f'- {row["name"]}, {row["bits"]}' +
            ('' if row['seed'] is None else f', seed {row["seed"]}') +
            f': {row["error"]}' for row in errors
        ] + ['']
    for title, file in pictures.items():
        lines += [f'## {title}', '', f'![{title}]({file})', '']
    write_text(path, '\n'.join(lines))


def _flatten(row: Mapping[str, Any]) -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat.update({f'{key}.{k}': v for k, v in _flatten(value).items()})
        else:
            flat[key] = value
    return flat


def _gpus(env: Mapping[str, Any]) -> str:
    """Name the GPUs; mmengine has a key ``'GPU 0,1'`` for two alike."""
    names = []
    for key, name in env.items():
        if key.startswith('GPU '):
            count = len(key.split(','))
            names.append(f'{count} x {name}' if count > 1 else name)
    return ', '.join(names) or 'none'


def _commit() -> str:
    folder = osp.dirname(osp.abspath(lcq_mmdet.__file__))
    try:
        result: 'subprocess.CompletedProcess[str]' = subprocess.run(
            ['git', 'describe', '--always', '--dirty'],
            cwd=folder,
            capture_output=True,
            text=True)
    except FileNotFoundError:
        return 'unknown'
    return result.stdout.strip() or 'unknown'
