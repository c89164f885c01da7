"""Report mAP per bit-width: from a float detector to 8, 4, 3 and 2 bits."""
import argparse
import json
import os.path as osp
from functools import partial
from pathlib import Path
from typing import Any, Dict, List

from mmengine.config import DictAction
from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner

from lcq_mmdet.cli import check_files, join_launcher, load_config, read_config
from lcq_mmdet.errors import LCQError
from lcq_mmdet.report.curves import plot_map
from lcq_mmdet.report.files import held
from lcq_mmdet.report.plots import plot_detections, plot_levels
from lcq_mmdet.report.records import (to_json, write_csv, write_markdown,
                                      write_record)
from lcq_mmdet.report.tables import map_table
from lcq_mmdet.studies.claim import held_by_main, on_main
from lcq_mmdet.studies.rows import pair_bits, plan
from lcq_mmdet.studies.start import check_float
from lcq_mmdet.studies.sweep import VARIANTS, Sweep


def read_variants(args: argparse.Namespace) -> Dict[str, Dict[str, Any]]:
    """Return what each quantizer and variant changes, by name."""
    names = args.quantizer or ([] if args.variant else ['lcq'])
    variants: Dict[str, Dict[str, Any]] = {
        name: VARIANTS[name]
        for name in names
    }
    for name, *options in args.variant:
        if len(options) == 1 and '=' not in options[0]:
            variants[name] = read_config(options[0]).to_dict()
            continue
        parser = argparse.ArgumentParser(prog=f'--variant {name}')
        parser.add_argument('options', nargs='*', action=DictAction)
        variants[name] = parser.parse_args(options).options or {}
    return variants


def draw(runs: Dict[str, Runner], records: List[Dict[str, Any]],
         out_dir: str) -> Dict[str, str]:
    """Draw what the records allow; return the pictures' files by title."""
    pictures = {'mAP against bits and size': 'map.png'}
    plot_map(records, osp.join(out_dir, 'map.png'))
    if len(runs) > 1:
        pictures['Learned companders'] = 'levels.png'
        plot_levels(list(runs.values())[-1], osp.join(out_dir, 'levels.png'))
        pictures['Detections'] = 'detections.png'
        plot_detections(runs, osp.join(out_dir, 'detections.png'))
    return pictures


def write_report(records: List[Dict[str, Any]], out_dir: str,
                 pictures: Dict[str, str]) -> None:
    write_record(osp.join(out_dir, 'report.json'), records)
    write_csv(osp.join(out_dir, 'report.csv'), records)
    write_markdown(osp.join(out_dir, 'report.md'), records, pictures)


def is_reported(records: List[Dict[str, Any]], out_dir: str) -> bool:
    """Tell whether there is a report of these records, with pictures."""
    files = [osp.join(out_dir, name) for name in ('report.json', 'report.md')]
    if not all(map(osp.isfile, files)):
        return False
    report, text = (Path(file).read_text(encoding='utf-8') for file in files)
    return (json.loads(report)['rows'] == json.loads(to_json(records))
            and '![' in text)


def main(args: argparse.Namespace) -> None:
    if not (args.bits or args.weight_bits or args.act_bits):
        args.bits = [32, 8, 4, 3, 2]
    widths = pair_bits(args.bits, args.weight_bits, args.act_bits)
    cfg = load_config(args, '_sweep')
    seeds = args.seeds or [cfg.get('randomness', {}).get('seed') or 0]
    variants = read_variants(args)
    rows = plan(widths, variants, [] if args.no_train else seeds,
                args.float_control)
    check_files(cfg, ('train_dataloader', 'test_dataloader'))
    check_float(cfg)
    join_launcher(cfg)

    folder = cfg.work_dir
    sweep = Sweep(cfg, rows, folder, args.progressive, variants)
    lock = osp.join(folder, '.report')
    for records in sweep.run():
        if is_main_process():
            with held(lock, wait=True):
                write_report(records, folder, {})
    with held_by_main(lock, wait=True):
        # Another process may have written the whole one.
        if not (sweep.is_shared and on_main(
                partial(is_reported, records, folder))):
            # Building a runner takes all ranks.
            runs = sweep.fine_tuned_runs(records)
            if is_main_process():
                write_report(records, folder, draw(runs, records, folder))
    if is_main_process():
        print(f'\nCOCO box AP on the test images:\n{map_table(records)}')
        for name in ('report.md', 'report.json', 'report.csv'):
            print('written:', osp.abspath(osp.join(folder, name)))
    barrier()
    failed = [row for row in records if 'error' in row]
    if failed:
        raise LCQError(f'{len(failed)} of {len(records)} rows failed, see '
                       'report.md; repeat the command to try them again')
