"""Evaluate finished runs side by side, in numbers and pictures."""
import argparse


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dirs',
        nargs='+',
        help='work directories of lcq train, the float run first')
    parser.add_argument(
        '--out-dir', required=True, help='where report and pictures go')
    return parser
