"""Measure kernels, steps, calibration and errors, as ratios in one run.

All that is timed takes turns in one process; a time is the median.
"""
import argparse
import os.path as osp
from typing import Any, Dict, Iterator, List

from mmengine.config import Config, DictAction

import lcq_mmdet.datasets  # noqa: F401
from lcq_mmdet.benchmark.activations import activation_rows
from lcq_mmdet.benchmark.kernels import DTYPES, kernel_rows
from lcq_mmdet.benchmark.training import change_training_, training_rows
from lcq_mmdet.cli import check_files, read_config
from lcq_mmdet.conversion.model import apply_lcq
from lcq_mmdet.errors import LCQError
from lcq_mmdet.export.engines import ENGINES, check_engine, is_installed
from lcq_mmdet.functional import check_bits
from lcq_mmdet.report.records import write_record
from lcq_mmdet.report.runs import load_run
from lcq_mmdet.report.tables import ratio_table

#: Those of one case after another.
Rows = Iterator[List[Dict[str, Any]]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    kernels = commands.add_parser(
        'kernels',
        help="ours, the reference and torch's own uniform fake quantizer")
    kernels.add_argument(
        '--size',
        type=int,
        default=2**23,
        help='number of activations (default: 8 million)')
    kernels.add_argument(
        '--dtype',
        choices=list(DTYPES),
        default='float32',
        help='of what is quantized (default: float32)')

    train = commands.add_parser(
        'train',
        help='a training step and the calibration, beside the float detector')
    train.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help="of the images, which are stretched (default: the config's)")
    train.add_argument(
        '--batch-size', type=int, help="images a step (default: the config's)")
    train.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision, on a GPU')
    train.add_argument(
        '--without-recomputation',
        action='store_true',
        help='measure LCQ also with quantized tensors saved for the backward '
        'pass')

    inference = commands.add_parser(
        'inference',
        help='the network on the CPU: torch, onnxruntime and 8-bit integers')
    inference.add_argument(
        '--run',
        nargs=2,
        action='append',
        default=[],
        metavar=('NAME', 'WORK_DIR'),
        help='a trained quantized detector, which is evaluated, too; any '
        'number of times')
    inference.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=[480, 640],
        metavar=('HEIGHT', 'WIDTH'),
        help='of the image (default: 480 640)')
    inference.add_argument(
        '--engine',
        nargs='+',
        choices=ENGINES,
        help='what runs the graphs (default: those that are installed)')

    activations = commands.add_parser(
        'activations',
        help='squared error after SiLU and GELU: levels above an offset, and '
        'symmetric ones')

    for command in (train, inference):
        command.add_argument(
            'config',
            nargs='+' if command is train else '*',
            help='config of a float detector, or mmdet::...')
        command.add_argument(
            '--cfg-options',
            nargs='+',
            action=DictAction,
            help='override settings of the configs')
        command.add_argument(
            '--modules',
            nargs='+',
            metavar='PATTERN',
            help="what to quantize (default: as the config says, or backbone "
            'and neck)')

    for command in (kernels, train, inference):
        command.add_argument(
            '--bits', type=int, default=4, help='bits, 2 to 8')
        command.add_argument(
            '--rounds', type=int, default=20, help='timed calls of each')
    for command in (kernels, train, inference, activations):
        command.add_argument(
            '--out',
            help='JSON file to write, such as benchmarks/kernels.json')
    args = parser.parse_args()
    if 'bits' in args:
        check_bits(args.bits)
    return args


def benchmark_kernels(args: argparse.Namespace) -> Rows:
    return kernel_rows(args.size, args.bits, args.rounds, args.dtype)


def benchmark_training(args: argparse.Namespace) -> Rows:
    cases: Dict[str, Config] = {}
    for path in args.config:
        cfg = read_config(path)
        cfg.merge_from_dict(args.cfg_options or {})
        check_files(cfg, ('train_dataloader', ))
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
    if not cases:
        raise LCQError('config: name one, or a trained detector with --run')
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


def main() -> None:
    args = parse_args()
    rows = []
    for part in BENCHMARKS[args.command](args):
        rows += part
        if args.out:
            # Each time, so that a run that is cut off leaves what it had.
            write_record(args.out, rows)
    print(ratio_table(rows))
    if args.out:
        print('written:', osp.abspath(args.out))
