"""Evaluate finished runs side by side, in numbers and pictures."""
import argparse
import os
import os.path as osp

from mmengine.utils import mkdir_or_exist

from lcq_mmdet.cli import check_files
from lcq_mmdet.report.plots import plot_detections, plot_levels
from lcq_mmdet.report.records import write_record
from lcq_mmdet.report.runs import evaluate, load_run
from lcq_mmdet.report.tables import map_table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dirs',
        nargs='+',
        help='work directories of tools/train.py, the float run first')
    parser.add_argument(
        '--out-dir', required=True, help='where report and pictures go')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    configs = [load_run(work_dir) for work_dir in args.work_dirs]
    for cfg in configs:
        check_files(cfg, ('test_dataloader', ))
    runs = [evaluate(cfg) for cfg in configs]
    rows = [run.record() for run in runs]

    mkdir_or_exist(args.out_dir)
    paths = [
        osp.join(args.out_dir, name)
        for name in ('report.json', 'detections.png', 'levels.png')
    ]
    write_record(paths[0], rows)
    plot_detections({f'{run.name}': run.runner for run in runs}, paths[1])
    plot_levels(runs[-1].runner, paths[2])
    print(f'\nCOCO box AP on the validation images:\n{map_table(rows)}')
    print('written:', *map(os.path.abspath, paths), sep='\n  ')
