"""Check which of mmdet's configs can be quantized, each on a small image."""
import argparse
import json
import multiprocessing
import os
import os.path as osp
import resource
import time
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any, Dict, Iterator, List, Optional

import torch
from rich.progress import track

from lcq_mmdet.benchmark.noise import describe
from lcq_mmdet.benchmark.zoo import ROOT, check_config, list_configs, zoo_table
from lcq_mmdet.errors import LCQError
from lcq_mmdet.report.records import to_json, write_record, write_text

# Of a family whose configs need what is not here, so many are tried.
_TRIES = 3


def check_apart(path: str, args: argparse.Namespace) -> Dict[str, Any]:
    """Check a config in a process that can fail or be stopped."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_check, args=(path, args, sender))
    process.start()
    sender.close()
    start = time.monotonic()
    reason = f'took more than {args.timeout:g} s'
    row: Optional[Dict[str, Any]] = None
    try:
        if receiver.poll(args.timeout):
            row = receiver.recv()
    except EOFError:
        reason = f'died; it may need more than {args.memory:g} GB'
    finally:
        process.kill()
        process.join()
    if row is None:
        row = dict(config=path, status='failed', reason=reason)
    return dict(row, seconds=round(time.monotonic() - start, 1))


def _check(path: str, args: argparse.Namespace, sender: Connection) -> None:
    torch.set_num_threads(1)
    limit = int(args.memory * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # What a model prints while it is built is of no interest.
    with open(os.devnull, 'w') as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    try:
        sender.send(check_config(path, args.root, args.modules))
    except MemoryError as error:
        sender.send(dict(config=path, status='failed', reason=describe(error)))


def plan(args: argparse.Namespace) -> Dict[str, List[str]]:
    """Choose the configs to check, by family."""
    if not osp.isdir(osp.join(args.root, 'configs')):
        raise LCQError(f'--root={args.root!r}: has no folder named configs')
    families = list_configs(args.root)
    for family in args.family or ():
        if family not in families:
            raise LCQError(f'--family {family!r}: there is none; there are '
                           f'{", ".join(families)}')
    return {
        family: paths
        for family, paths in families.items()
        if not args.family or family in args.family
    }


def check(args: argparse.Namespace,
          done: Dict[str, Dict[str, Any]]) -> Iterator[List[Dict[str, Any]]]:
    """Check what is not done; yield all rows so far after each config."""
    rows: List[Dict[str, Any]] = []
    for paths in track(plan(args).values(), description='families'):
        tried = 0
        for path in paths:
            rows.append(done.get(path) or check_apart(path, args))
            yield rows
            tried += rows[-1]['status'] == 'float'
            if not args.all and (rows[-1]['status'] in ('ok', 'failed')
                                 or tried == _TRIES):
                break


def main(args: argparse.Namespace) -> None:
    args.root = args.root or ROOT
    partial, rows = f'{args.out}.partial', []
    done: Dict[str, Dict[str, Any]] = {}
    if osp.isfile(partial):
        with open(partial, encoding='utf-8') as file:
            done = {row['config']: row for row in json.load(file)}
    for rows in check(args, done):
        write_text(partial, to_json(rows))
    write_record(args.out, rows)
    write_text(f'{args.out[:-len(".json")]}.md',
               f'# Configs of mmdet at 4 bits\n\n{zoo_table(rows)}\n')
    os.remove(partial)
    counts = Counter(row['status'] for row in rows)
    print(f'{counts["ok"]} configs are quantized and run, of {counts["float"]}'
          f' the float model does not, {counts["no model"]} have none, '
          f'{counts["failed"]} failed; written: {args.out}')
    if counts['failed']:
        raise LCQError(', '.join(
            row['config'] for row in rows if row['status'] == 'failed'))
