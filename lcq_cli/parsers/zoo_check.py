"""Check which of mmdet's configs can be quantized, each on a small image."""
import argparse
from typing import Optional


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Configs that are done are not checked again: repeat the '
        'command after an interruption. Each runs in a process of its own.')
    parser.add_argument(
        '--out',
        default='benchmarks/zoo.json',
        help='where the record goes; the table goes beside it, as .md')
    parser.add_argument(
        '--all',
        action='store_true',
        help='check every config and not one of each family')
    parser.add_argument(
        '--root',
        help="folder with configs/FAMILY/*.py (default: mmdet's)")
    parser.add_argument(
        '--family', nargs='+', help='check these families only')
    parser.add_argument(
        '--modules',
        nargs='+',
        help="what to quantize, '*' for heads, too (default: backbone and "
        'neck)')
    parser.add_argument(
        '--timeout',
        type=float,
        default=300,
        help='seconds for one config (default: 300)')
    parser.add_argument(
        '--memory',
        type=float,
        default=8,
        help='gigabytes for one config (default: 8)')
    return parser


def check(args: argparse.Namespace) -> Optional[str]:
    """Return what is wrong with the arguments, with the remedy."""
    if not args.out.endswith('.json'):
        return f'--out={args.out!r}: must end in .json'
    return None
