"""Report mAP per bit-width: from a float detector to 8, 4, 3 and 2 bits."""
import argparse
import re
from typing import Optional, Tuple, Union

from ..shared import QUANTIZERS, add_launcher_arguments, check_bits

_FLOAT = 32


def parse_bits(text: str) -> Union[int, Tuple[int, int]]:
    """Read a bit-width of the command line.

    Args:
        text: Bits of weights and inputs alike, ``'4'``, or those of either,
            ``'w4a8'``.

    Raises:
        argparse.ArgumentTypeError: If it is neither.

    Examples:
        >>> parse_bits('4'), parse_bits('w4a8')
        (4, (4, 8))
    """
    found = re.fullmatch(r'(\d+)|w(\d+)a(\d+)', text.lower())
    if not found:
        raise argparse.ArgumentTypeError(
            f'{text!r}: must be 2 to 8, {_FLOAT} for float, or of either, '
            'such as w4a8')
    both, weight, act = found.groups()
    return int(both) if both else (int(weight), int(act))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The config is a float or a quantized one, and its load_from '
        'the float checkpoint (--cfg-options load_from=...). Rows that are '
        'done are not run again: repeat the command to go on. Start it '
        'several times, also on other machines with the same folder, and '
        'each process takes other rows.')
    parser.add_argument('config', help='path of a config, or mmdet::...')
    add_launcher_arguments(parser)
    _add_rows(parser)
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


def _add_rows(parser: argparse.ArgumentParser) -> None:
    """Add what says which rows there are."""
    parser.add_argument(
        '--bits',
        type=parse_bits,
        nargs='+',
        metavar='B',
        help='bits of weights and inputs, 2 to 8, or of either, such as w4a8; '
        '32 is the float detector, which is always evaluated (default: '
        '32 8 4 3 2)')
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


def check(args: argparse.Namespace) -> Optional[str]:
    """Return what is wrong with the arguments, with the remedy."""
    if args.no_train:
        for flag in ('seeds', 'float_control', 'progressive'):
            if getattr(args, flag):
                return (f'--{flag.replace("_", "-")}: is for rows that are '
                        'trained; leave it or --no-train out')
    names = ['float', *(args.quantizer or ())]
    for name, *_ in args.variant:
        if not re.fullmatch(r'[\w.-]+', name) or name in names:
            return (f'--variant {name!r}: must be a name of its own, of '
                    'letters, digits, "_", "-" and "."')
        names.append(name)
    pairs = [
        value if isinstance(value, tuple) else (value, )
        for value in args.bits or () if value != _FLOAT
    ]
    return (check_bits('--bits', *(bits for pair in pairs for bits in pair))
            or check_bits('--weight-bits', *(args.weight_bits or ()))
            or check_bits('--act-bits', *(args.act_bits or ())))
