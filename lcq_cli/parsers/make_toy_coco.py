"""Generate a small detection data set in COCO's format. It is not COCO."""
import argparse


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'folder',
        metavar='out',
        help='folder to make, such as data/toy_coco')
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
    return parser
