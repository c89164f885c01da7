"""Rank layers by what quantizing each alone loses, and propose their bits."""
import argparse
from typing import Optional

from ..shared import CRITERIA, add_launcher_arguments, check_bits


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Nothing is trained. Layers that are done are not measured '
        'again: repeat the command to go on, or with another budget.')
    parser.add_argument('config', help='path of a config, or mmdet::...')
    parser.add_argument(
        'checkpoint', nargs='?', help="the float one (default: the config's "
        'load_from)')
    add_launcher_arguments(parser)
    parser.add_argument(
        '--bits',
        type=int,
        nargs='+',
        default=[2, 3, 4, 8],
        metavar='B',
        help='bits of weight and input to choose from, 2 to 8 (default: 2 3 '
        '4 8)')
    parser.add_argument(
        '--budget-bits',
        type=int,
        metavar='B',
        help='propose what is neither larger nor more work than these bits '
        'all over, 2 to 8 (default: 3, without another budget)')
    parser.add_argument(
        '--budget-mb', type=float, metavar='MB', help='size of the model')
    parser.add_argument(
        '--budget-gbops',
        type=float,
        metavar='GBOPS',
        help='bit operations for an image, in 10^9')
    parser.add_argument(
        '--criterion',
        choices=CRITERIA,
        default='loss',
        help='what a layer loses: loss on training batches, or mAP on the '
        'test data, which is slow (default: loss)')
    parser.add_argument(
        '--num-batches',
        type=int,
        default=8,
        help='training batches for the loss (default: 8)')
    # These are what load_config looks for.
    parser.set_defaults(weight_bits=None, act_bits=None)
    return parser


def check(args: argparse.Namespace) -> Optional[str]:
    """Return what is wrong with the arguments, with the remedy."""
    for key in ('budget_mb', 'budget_gbops'):
        value = getattr(args, key)
        if value is not None and not 0 < value < float('inf'):
            return (f'--{key.replace("_", "-")}={value:g}: must be a positive '
                    'number')
    return (check_bits('--bits', *args.bits)
            or check_bits('--budget-bits', args.budget_bits))
