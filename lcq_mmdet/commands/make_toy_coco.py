"""Generate a small detection data set in COCO's format. It is not COCO."""
import argparse
import sys

from mmengine.utils import track_iter_progress

from lcq_mmdet.datasets import generate_toy_coco


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', help='folder to make, such as data/toy_coco')
    parser.add_argument(
        '--images',
        type=int,
        default=3000,
        help='number of training images; a fifth as many are made for '
        'validation in addition')
    parser.add_argument(
        '--size', type=int, default=128, help='side of the images in pixels')
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of everything random')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        written = generate_toy_coco(
            args.out,
            args.images,
            args.size,
            args.seed,
            progress=track_iter_progress)
    except (ValueError, OSError) as error:
        sys.exit(f'make_toy_coco.py: {error}')
    print(f'{args.out}: '
          f'{"written" if written else "already there, nothing to do"}')
