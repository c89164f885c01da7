"""Write a trained low-bit detector to a packed file."""
import argparse

from mmengine.utils import track_iter_progress

from lcq_mmdet.cli import add_runner_arguments, load_config, run_tool
from lcq_mmdet.errors import LCQError
from lcq_mmdet.export import export_packed, load_quantized, size_table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='tools/test.py, init_detector and DetInferencer take the file '
        'as they take a checkpoint, and give the same results.')
    parser.add_argument('config', help='path of a config, or mmdet::...')
    parser.add_argument('checkpoint', help='checkpoint of its training')
    parser.add_argument(
        '--out', required=True, help='file to write: *.safetensors')
    parser.add_argument(
        '--half',
        action='store_true',
        help='keep what is not quantized in half precision: smaller, results '
        'are not exactly the same')
    add_runner_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not args.out.endswith('.safetensors'):
        raise LCQError(f'--out={args.out!r}: must end in .safetensors')
    cfg = load_config(args)
    model, meta = load_quantized(cfg, args.checkpoint)
    sizes = export_packed(
        model,
        args.out,
        cfg.to_dict(),
        {key: meta[key] for key in ('dataset_meta', ) if key in meta},
        half=args.half,
        progress=track_iter_progress)
    print(f'\n{size_table(sizes)}\n'
          f'written: {args.out}, {sizes.ratio:.3f} of the float model, '
          f'overhead {sizes.overhead:.2%}')


if __name__ == '__main__':
    run_tool(main)
