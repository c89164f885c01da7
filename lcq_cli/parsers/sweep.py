"""Report mAP per bit-width: from a float detector to 8, 4, 3 and 2 bits."""
import argparse
import re
from typing import Optional

from ..shared import QUANTIZERS, add_launcher_arguments


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The config is a float or a quantized one, and its load_from '
        'the float checkpoint (--cfg-options load_from=...). Rows that are '
        'done are not run again: repeat the command to go on.')
    parser.add_argument('config', help='path of a config, or mmdet::...')
    add_launcher_arguments(parser)
    parser.add_argument(
        '--bits',
        type=int,
        nargs='+',
        metavar='B',
        help='bits of weights and inputs, 2 to 8; 32 is the float detector, '
        'which is always evaluated (default: 32 8 4 3 2)')
    parser.add_argument(
        '--weight-bits',
        type=int,
        nargs='+',
        metavar='B',
        help='bits of weights, paired with --act-bits')
    parser.add_argument(
        '--act-bits', type=int, nargs='+', metavar='B', help='bits of inputs')
    parser.add_argument(
        '--quantizer',
        nargs='+',
        choices=QUANTIZERS,
        help='quantizers to compare (default: lcq)')
    parser.add_argument(
        '--variant',
        nargs='+',
        action='append',
        default=[],
        metavar=('NAME', 'KEY=VALUE'),
        help='settings to compare, under a name: --variant no_norm '
        'model.weight_norm=none --variant slow train_cfg.max_epochs=24; or '
        'one config file in place of the settings')
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        help="seeds of the fine-tuning (default: the config's, or 0)")
    parser.add_argument(
        '--float-control',
        action='store_true',
        help='fine-tune the float detector, too, for as long as the quantized '
        'ones: what they are to be compared with, since they train longer '
        'than the one they start from')
    parser.add_argument(
        '--progressive',
        action='store_true',
        help='start each bit-width from the next higher one, and not from the '
        'float detector; its clips and companders are kept, not calibrated '
        'anew')
    parser.add_argument(
        '--no-train',
        action='store_true',
        help='calibrate and evaluate only')
    return parser


def check(args: argparse.Namespace) -> Optional[str]:
    """Return what is wrong with the arguments, with the remedy."""
    names = ['float', *(args.quantizer or ())]
    for name, *_ in args.variant:
        if not re.fullmatch(r'[\w.-]+', name) or name in names:
            return (f'--variant {name!r}: must be a name of its own, of '
                    'letters, digits, "_", "-" and "."')
        names.append(name)
    return None
