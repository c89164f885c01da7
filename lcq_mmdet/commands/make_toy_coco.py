"""Generate a small detection data set in COCO's format. It is not COCO."""
import argparse

from mmengine.utils import track_iter_progress

from lcq_mmdet.datasets import generate_toy_coco
from lcq_mmdet.errors import LCQError


def main(args: argparse.Namespace) -> None:
    try:
        written = generate_toy_coco(
            args.folder,
            args.images,
            args.size,
            args.seed,
            progress=track_iter_progress)
    except (ValueError, OSError) as error:
        raise LCQError(str(error)) from None
    print(f'{args.folder}: '
          f'{"written" if written else "already there, nothing to do"}')
