"""Measure kernels, steps, calibration and errors, as ratios in one run.

All that is timed takes turns in one process; a time is the median.
"""
import argparse
from typing import Optional

from mmengine.config import DictAction

from ..shared import ENGINES, check_bits


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    kernels = commands.add_parser(
        'kernels',
        help="ours, the reference and torch's own uniform fake quantizer")
    train = commands.add_parser(
        'train',
        help='a training step and the calibration, beside the float detector')
    inference = commands.add_parser(
        'inference',
        help='the network on the CPU: torch, onnxruntime and 8-bit integers; '
        'of trained detectors also AP, and all from images to boxes')
    activations = commands.add_parser(
        'activations',
        help='squared error after SiLU and GELU: levels above an offset, and '
        'symmetric ones')
    _add_kernels(kernels)
    _add_train(train)
    _add_inference(inference)
    for command in (train, inference):
        _add_detectors(command, nargs='+' if command is train else '*')
    for command in (kernels, train, inference):
        command.add_argument(
            '--bits', type=int, default=4, help='bits, 2 to 8')
        command.add_argument(
            '--rounds', type=int, default=20, help='timed calls of each')
    for command in (kernels, train, inference, activations):
        command.add_argument(
            '--out',
            help='JSON file to write, such as benchmarks/kernels.json')
    return parser


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--size',
        type=int,
        default=2**23,
        help='number of activations (default: 8 million)')
    parser.add_argument(
        '--dtype',
        choices=['float32', 'float16', 'bfloat16'],
        default='float32',
        help='of what is quantized (default: float32)')


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help="of the images, which are stretched (default: the config's)")
    parser.add_argument(
        '--batch-size', type=int, help="images a step (default: the config's)")
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision, on a GPU')
    parser.add_argument(
        '--without-recomputation',
        action='store_true',
        help='measure LCQ also with quantized tensors saved for the backward '
        'pass')


def _add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--run',
        nargs=2,
        action='append',
        default=[],
        metavar=('NAME', 'WORK_DIR'),
        help='a trained quantized detector, which is evaluated, too; any '
        'number of times')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=[480, 640],
        metavar=('HEIGHT', 'WIDTH'),
        help='of the image (default: 480 640)')
    parser.add_argument(
        '--engine',
        nargs='+',
        choices=ENGINES,
        help='what runs the graphs (default: those that are installed)')


def _add_detectors(parser: argparse.ArgumentParser, nargs: str) -> None:
    parser.add_argument(
        'config',
        nargs=nargs,
        help='config of a float detector, or mmdet::...')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the configs')
    parser.add_argument(
        '--modules',
        nargs='+',
        metavar='PATTERN',
        help='what to quantize (default: as the config says, or backbone and '
        'neck)')


def check(args: argparse.Namespace) -> Optional[str]:
    """Return what is wrong with the arguments, with the remedy."""
    if args.command == 'inference' and not (args.config or args.run):
        return 'config: name one, or a trained detector with --run'
    if args.command == 'inference' and args.modules and not args.config:
        return (f'--modules={args.modules}: is for the configs; a trained '
                'detector has its own')
    for key in ('size', 'rounds', 'batch_size'):
        given = getattr(args, key, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < 1:
                return f'--{key.replace("_", "-")}={value}: must be positive'
    return check_bits('--bits', getattr(args, 'bits', None))
