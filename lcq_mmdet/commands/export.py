"""Write a trained low-bit detector to a packed file or an ONNX graph."""
import argparse
import os.path as osp

from mmengine.config import Config
from mmengine.utils import track_iter_progress

from lcq_mmdet.cli import add_runner_arguments, check_files, load_config
from lcq_mmdet.errors import LCQError
from lcq_mmdet.export import (export_packed, float_bytes, load_quantized,
                              size_table, training_images)
from lcq_mmdet.export.engines import ENGINES


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='tools/test.py takes either file as it takes a checkpoint, '
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
        default=ENGINES[0],
        help='with --int8 exact: the engine that the tables of levels are '
        'written for; the other computes the same, more slowly')
    parser.add_argument(
        '--keep-float',
        nargs='+',
        default=[],
        metavar='PATTERN',
        help='with --int8: layers to leave in float, of those that training '
        'left in float; all others are computed in 8 bits, too')
    parser.add_argument(
        '--end2end',
        action='store_true',
        help='write an ONNX graph that takes images and gives boxes, with '
        'preparation, decoding and suppression in it')
    add_runner_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    suffix = osp.splitext(args.out)[1]
    if suffix not in ('.safetensors', '.onnx'):
        raise LCQError(f'--out={args.out!r}: must end in .safetensors or '
                       '.onnx')
    if args.half and suffix == '.onnx':
        raise LCQError('--half: is for packed checkpoints (.safetensors)')
    if args.end2end and suffix != '.onnx':
        raise LCQError('--end2end: is for ONNX graphs (.onnx)')
    if args.int8 and suffix != '.onnx':
        raise LCQError('--int8: is for ONNX graphs (.onnx)')
    if args.keep_float and not args.int8:
        raise LCQError(f'--keep-float={args.keep_float!r}: is for --int8')
    folder = osp.dirname(args.out)
    if folder and not osp.isdir(folder):
        raise LCQError(f'--out={args.out!r}: cannot be written: there is no '
                       f'folder {folder!r}')
    cfg = load_config(args)
    if args.int8:
        # What the training started from is not needed any more.
        check_files(
            Config(dict(cfg, load_from=None)), ('train_dataloader', ))
    model, meta = load_quantized(cfg, args.checkpoint)
    meta = {key: meta[key] for key in ('dataset_meta', ) if key in meta}
    if suffix == '.onnx':
        from lcq_mmdet.export.end2end import export_end2end
        from lcq_mmdet.export.graphs import export_onnx
        export = (export_end2end if args.end2end else export_onnx)(
            model,
            args.out,
            cfg if args.end2end else cfg.to_dict(),
            meta,
            progress=track_iter_progress,
            int8=args.int8,
            images=training_images(cfg, model) if args.int8 else (),
            keep_float=args.keep_float,
            engine=args.engine)
        print(f'\nwritten: {args.out}, {export.size / 1e6:.3f} MB, '
              f'{export.size / float_bytes(model):.3f} of the float model')
        if args.int8:
            print(f'{export.integer_share:.1%} of the multiply-accumulates '
                  'are in 8-bit integers')
        for name, why in export.left_float.items():
            print(f'in float: {name}: {why}')
        return
    sizes = export_packed(
        model,
        args.out,
        cfg.to_dict(),
        meta,
        half=args.half,
        progress=track_iter_progress)
    print(f'\n{size_table(sizes)}\n'
          f'written: {args.out}, {sizes.ratio:.3f} of the float model, '
          f'overhead {sizes.overhead:.2%}')
