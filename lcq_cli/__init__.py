"""The command ``lcq``; imports nothing that loads slowly until it must."""
import importlib
import sys
from argparse import Namespace
from functools import partial
from importlib.metadata import version
from typing import List, NoReturn, Optional

from .paths import check_paths

#: The commands, and what each does in a line.
COMMANDS = {
    'train': 'train a detector in float or, with --bits, quantized',
    'test': 'evaluate a detector, a packed file or a graph',
    'sweep': 'report mAP per bit-width',
    'sensitivity': 'rank layers by what quantizing each alone loses',
    'report': 'evaluate finished runs side by side',
    'export': 'write a packed file or an ONNX graph',
    'benchmark': 'measure kernels, steps and inference',
    'zoo-check': "check which of mmdet's configs can be quantized",
    'make-toy-coco': "generate a small data set in COCO's format",
}


def main(arguments: Optional[List[str]] = None) -> None:
    """Run the command that the first argument names.

    Args:
        arguments: What follows ``lcq`` on the command line; that of this
            process by default.
    """
    given = sys.argv[1:] if arguments is None else arguments
    name, rest = (given[0], given[1:]) if given else ('--help', [])
    if name in ('-h', '--help'):
        width = max(map(len, COMMANDS))
        rows = [f'  {key:{width}}  {what}' for key, what in COMMANDS.items()]
        print('usage: lcq COMMAND ...', '',
              'Low-bit detectors for mmdetection.', '', 'commands:', *rows, '',
              "'lcq COMMAND --help' tells the flags of one.", sep='\n')
        return
    if name == '--version':
        print(f'lcq_mmdet {version("lcq_mmdet")}')
        return
    if name not in COMMANDS:
        _fail(f'{name!r}: no such command; there are {", ".join(COMMANDS)}')
    sys.argv = [f'lcq {name}', *rest]
    run(name)


def run(name: str) -> None:
    """Run a command with the arguments of this process.

    A mistake in them is told before the package is imported.

    Args:
        name: One of ``COMMANDS``.
    """
    args = parse(name, sys.argv[1:])
    command = importlib.import_module(
        f'lcq_mmdet.commands.{name.replace("-", "_")}')
    running = importlib.import_module('lcq_mmdet.cli.running')
    running.run_tool(partial(command.main, args))


def parse(name: str, arguments: List[str]) -> Namespace:
    """Read the arguments of a command; exit with 2 after a mistake."""
    parsers = importlib.import_module(
        f'lcq_cli.parsers.{name.replace("-", "_")}')
    args: Namespace = parsers.make_parser().parse_args(arguments)
    check = getattr(parsers, 'check', lambda args: None)
    problem = check(args) or check_paths(args)
    if problem:
        _fail(problem)
    return args


def _fail(problem: str) -> NoReturn:
    print(f'error: {problem}', file=sys.stderr)
    sys.exit(2)
