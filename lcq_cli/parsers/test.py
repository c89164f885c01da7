"""Evaluate a detector; with --bits, a float checkpoint is quantized first."""
import argparse
from typing import Optional

from ..shared import ENGINES, add_bits, add_launcher_arguments


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config, or mmdet::...')
    parser.add_argument(
        'checkpoint', help='checkpoint: float, quantized or packed; '
        'or a graph (.onnx)')
    add_launcher_arguments(parser)
    add_bits(parser)
    parser.add_argument(
        '--engine',
        choices=ENGINES,
        help='what runs a graph (default: onnxruntime)')
    parser.add_argument(
        '--out', help='also write the predictions to this .pkl file')
    parser.add_argument(
        '--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir', help='write painted images to this folder of the run')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds that --show shows an image')
    parser.add_argument(
        '--tta', action='store_true', help='use test time augmentation')
    return parser


def check(args: argparse.Namespace) -> Optional[str]:
    """Return what is wrong with the arguments, with the remedy."""
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        return f'--out={args.out!r}: must end in .pkl or .pickle'
    if args.engine and not args.checkpoint.endswith('.onnx'):
        return (f'--engine={args.engine!r}: is for graphs (.onnx), and '
                f'checkpoint={args.checkpoint!r} is none')
    return None
