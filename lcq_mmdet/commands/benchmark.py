"""Measure kernels, steps, calibration and errors, as ratios in one run.

All that is timed takes turns in one process; a time is the median.
"""
import argparse
import os.path as osp
from typing import Any, Dict, Iterator, List

from mmengine.config import Config

import lcq_mmdet.datasets  # noqa: F401
from lcq_mmdet.benchmark.activations import activation_rows
from lcq_mmdet.benchmark.kernels import kernel_rows
from lcq_mmdet.benchmark.training import change_training_, training_rows
from lcq_mmdet.cli import check_files, check_present, read_config
from lcq_mmdet.conversion.model import apply_lcq
from lcq_mmdet.errors import LCQError
from lcq_mmdet.export.engines import ENGINES, check_engine, is_installed
from lcq_mmdet.report.records import write_record
from lcq_mmdet.report.runs import load_run
from lcq_mmdet.report.tables import ratio_table

#: Those of one case after another.
Rows = Iterator[List[Dict[str, Any]]]


def benchmark_kernels(args: argparse.Namespace) -> Rows:
    return kernel_rows(args.size, args.bits, args.rounds, args.dtype)


def benchmark_training(args: argparse.Namespace) -> Rows:
    cases: Dict[str, Config] = {}
    for path in args.config:
        cfg = read_config(path)
        cfg.merge_from_dict(args.cfg_options or {})
        # Its classes do not matter.
        check_present(cfg, ('train_dataloader', ))
        change_training_(cfg, args.size, args.batch_size, args.amp)
        if args.modules:
            cfg = apply_lcq(cfg, args.bits, modules=args.modules)
        case = osp.splitext(osp.basename(path))[0]
        cases[f'{case}, mixed precision' if args.amp else case] = cfg
    for case, cfg in cases.items():
        yield training_rows(case, cfg, args.bits, args.rounds,
                            args.without_recomputation)


def benchmark_inference(args: argparse.Namespace) -> Rows:
    engines = args.engine or [name for name in ENGINES if is_installed(name)]
    for engine in engines:
        check_engine(engine)
    from lcq_mmdet.benchmark.inference import inference_rows
    cases: Dict[str, Config] = {}
    for path in args.config:
        cfg = read_config(path)
        name = osp.splitext(osp.basename(path))[0]
        cfg.load_from = None
        cases[f'{name}, {args.bits} bits'] = apply_lcq(
            cfg, args.bits, modules=args.modules)
    for name, work_dir in args.run:
        cases[name] = load_run(work_dir)
        if cases[name].model.type != 'LCQModel':
            raise LCQError(f'--run={name!r}: {work_dir} holds a float '
                           'detector; name a quantized one, or its config')
    for cfg in cases.values():
        cfg.merge_from_dict(args.cfg_options or {})
        if cfg.load_from:
            check_files(cfg, ('train_dataloader', 'test_dataloader'))
    for case, cfg in cases.items():
        height, width = args.size
        yield inference_rows(
            case, cfg, (height, width), args.rounds, engines)


def benchmark_activations(args: argparse.Namespace) -> Rows:
    yield activation_rows()


BENCHMARKS = dict(
    activations=benchmark_activations,
    kernels=benchmark_kernels,
    train=benchmark_training,
    inference=benchmark_inference)


def main(args: argparse.Namespace) -> None:
    rows = []
    for part in BENCHMARKS[args.command](args):
        rows += part
        if args.out:
            # Each time, so that a run that is cut off leaves what it had.
            write_record(args.out, rows)
    print(ratio_table(rows))
    if args.out:
        print('written:', osp.abspath(args.out))
