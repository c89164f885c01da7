"""Generate a small detection data set in COCO's format. It is not COCO."""
import argparse
import sys

from mmengine.utils import track_iter_progress

from lcq_mmdet.datasets import generate_toy_coco


def main(args: argparse.Namespace) -> None:
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
