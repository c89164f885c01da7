"""Evaluate finished runs side by side, in numbers and pictures."""
import argparse
import os
import os.path as osp
from typing import List, Sequence

from mmengine.utils import mkdir_or_exist

from lcq_mmdet.cli import check_files
from lcq_mmdet.report.plots import plot_detections, plot_levels
from lcq_mmdet.report.records import write_record
from lcq_mmdet.report.runs import evaluate, load_run
from lcq_mmdet.report.tables import map_table


def short_names(work_dirs: Sequence[str]) -> List[str]:
    """Name runs by their folders, or by the whole paths if one would repeat.

    Examples:
        >>> short_names(['work_dirs/float', 'work_dirs/4bit/'])
        ['float', '4bit']
        >>> short_names(['a/run', 'b/run'])
        ['a/run', 'b/run']
    """
    paths = [osp.normpath(path) for path in work_dirs]
    names = [osp.basename(path) for path in paths]
    return names if len(set(names)) == len(names) else paths


def main(args: argparse.Namespace) -> None:
    work_dirs = list(dict.fromkeys(map(osp.normpath, args.work_dirs)))
    configs = [load_run(work_dir) for work_dir in work_dirs]
    for cfg in configs:
        check_files(cfg, ('test_dataloader', ))
    runs = [
        evaluate(cfg)._replace(name=name)
        for cfg, name in zip(configs, short_names(work_dirs))
    ]
    rows = [run.record() for run in runs]

    mkdir_or_exist(args.out_dir)
    paths = [
        osp.join(args.out_dir, name)
        for name in ('report.json', 'detections.png')
    ]
    write_record(paths[0], rows)
    plot_detections({run.name: run.runner for run in runs}, paths[1])
    quantized = [run.runner for run in runs if run.bits != 'float']
    if quantized:
        paths.append(osp.join(args.out_dir, 'levels.png'))
        plot_levels(quantized[-1], paths[-1])
    print(f'\nCOCO box AP on the validation images:\n{map_table(rows)}')
    print('written:', *map(os.path.abspath, paths), sep='\n  ')
