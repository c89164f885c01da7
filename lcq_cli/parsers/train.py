"""Train a detector in float or, with --bits, quantized."""
import argparse

from ..shared import add_bits, add_launcher_arguments


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config, or mmdet::...')
    add_launcher_arguments(parser)
    add_bits(parser)
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from the given checkpoint; without a value, from the '
        'latest one in the work directory, if there is any')
    return parser
