"""Write a trained low-bit detector to a packed file or an ONNX graph."""
import argparse
import os.path as osp
from typing import Optional

from ..shared import ENGINES, add_bits, add_cfg_options


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='lcq test takes either file as it takes a checkpoint, '
        'init_detector and DetInferencer the packed one.')
    parser.add_argument('config', help='path of a config, or mmdet::...')
    parser.add_argument('checkpoint', help='checkpoint of its training')
    parser.add_argument(
        '--out',
        required=True,
        help='file to write: *.safetensors, a packed checkpoint, or *.onnx, '
        'a graph for onnxruntime')
    parser.add_argument(
        '--half',
        action='store_true',
        help='keep what is not quantized in half precision: smaller, results '
        'are not exactly the same')
    parser.add_argument(
        '--int8',
        choices=['exact', 'relaxed'],
        help='in an ONNX graph, 8-bit integer arithmetic; inputs of layers '
        'are their levels, rounded to 8 bits (exact), or any 8 bits, clipped '
        'as learned (relaxed); training images give the ranges of the rest')
    parser.add_argument(
        '--engine',
        choices=ENGINES,
        help='with --int8 exact: the engine that the tables of levels are '
        'written for; the other computes the same, more slowly (default: '
        f'{ENGINES[0]})')
    parser.add_argument(
        '--keep-float',
        nargs='*',
        metavar='PATTERN',
        help='with --int8: layers to leave in float, of those that training '
        'left in float, beside the last ones before the boxes; without a '
        'pattern, none at all')
    parser.add_argument(
        '--end2end',
        action='store_true',
        help='write an ONNX graph that takes images and gives boxes, with '
        'preparation, decoding and non-maximum suppression in it')
    add_cfg_options(parser)
    add_bits(parser)
    return parser


def check(args: argparse.Namespace) -> Optional[str]:
    """Return what is wrong with the arguments, with the remedy."""
    suffix = osp.splitext(args.out)[1]
    if suffix not in ('.safetensors', '.onnx'):
        return f'--out={args.out!r}: must end in .safetensors or .onnx'
    if args.half and suffix == '.onnx':
        return '--half: is for packed checkpoints (.safetensors)'
    for flag in ('end2end', 'int8'):
        if getattr(args, flag) and suffix != '.onnx':
            return f'--{flag}: is for ONNX graphs (.onnx)'
    if args.keep_float is not None and not args.int8:
        return f'--keep-float={args.keep_float!r}: is for --int8'
    if args.engine and args.int8 != 'exact':
        return f'--engine={args.engine}: is for --int8 exact'
    return None
