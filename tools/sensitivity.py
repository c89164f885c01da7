"""Rank layers by what quantizing each alone loses, and propose their bits."""
import argparse
import os.path as osp
import re
from typing import Any, Dict, List

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process

from lcq_mmdet.cli import (add_launcher_arguments, check_files, join_launcher,
                           load_config, run_tool)
from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import check_bits
from lcq_mmdet.report.assign import assign_bits
from lcq_mmdet.report.plots import plot_sensitivity
from lcq_mmdet.report.records import write_csv, write_record, write_text
from lcq_mmdet.report.sensitivity import CRITERIA, Sensitivity
from lcq_mmdet.report.sweep import check_float
from lcq_mmdet.report.tables import assignment_table, sensitivity_table


def parse_args() -> argparse.Namespace:
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
    args = parser.parse_args()
    # These are what load_config looks for.
    args.weight_bits = args.act_bits = None
    return args


def check_budget(args: argparse.Namespace) -> None:
    for value in args.bits:
        check_bits(value, '--bits')
    budgets = ('budget_bits', 'budget_mb', 'budget_gbops')
    if all(getattr(args, key) is None for key in budgets):
        args.budget_bits = 3
    if args.budget_bits is not None:
        check_bits(args.budget_bits, '--budget-bits')
    for key in budgets[1:]:
        value = getattr(args, key)
        if value is not None and not 0 < value < float('inf'):
            raise LCQError(f'--{key.replace("_", "-")}={value:g}: must be a '
                           'positive number')


def find_budget(args: argparse.Namespace,
                uniform: Dict[int, Dict[str, Any]]) -> Dict[str, float]:
    """Collect the most that a detector may cost, by what it costs."""
    budget = {}
    for key, given, unit in (('bytes', args.budget_mb, 1e6),
                             ('bops', args.budget_gbops, 1e9)):
        limits = [] if given is None else [given * unit]
        if args.budget_bits is not None:
            limits.append(uniform[args.budget_bits][key])
        if limits:
            budget[key] = min(limits)
    return budget


def write_overrides(path: str, bits: Dict[str, int]) -> None:
    lines = [f'        {name!r}: dict(bits={value}),'
             for name, value in bits.items()]
    write_text(path, '\n'.join(
        ['model = dict(', '    overrides={', *lines, '    })', '']))


def main() -> None:
    args = parse_args()
    check_budget(args)
    cfg: Config = load_config(args)
    if args.checkpoint:
        cfg.load_from = args.checkpoint
    check_files(cfg, ('train_dataloader', 'test_dataloader'))
    check_float(cfg)
    join_launcher(cfg)

    sensitivity = Sensitivity(cfg, args.criterion, args.num_batches)
    rows: List[Dict[str, Any]] = []
    for bits in sorted(set(args.bits)):
        rows += sensitivity.rows(bits)
    uniform = {
        bits: sensitivity.assignment(f'{bits} bits', bits)
        for bits in sorted({*args.bits, args.budget_bits} - {None})
    }
    # What no assignment changes, such as a head that stays in float.
    total = sensitivity.assignment('all', args.bits[0],
                                   {'*': dict(bits=args.bits[0])})
    own = [row for row in rows if row['bits'] == args.bits[0]]
    budget = {
        key: most - total[key] + sum(row[key] for row in own)
        for key, most in find_budget(args, uniform).items()
    }
    chosen = assign_bits(rows, budget)
    proposal = sensitivity.assignment(
        'proposal', min(args.bits),
        {re.sub(r'([*?[])', r'[\1]', name): dict(bits=bits)
         for name, bits in chosen.items()})
    assignments = [*uniform.values(), proposal]
    if is_main_process():
        files = [osp.join(cfg.work_dir, f'report.{ending}')
                 for ending in ('md', 'json', 'csv', 'png')]
        files.append(osp.join(cfg.work_dir, 'overrides.py'))
        for row in rows:
            row['proposed'] = chosen[row['layer']] == row['bits']
        write_record(files[1], rows)
        write_csv(files[2], rows)
        plot_sensitivity(rows, args.criterion, files[3])
        write_overrides(files[4], chosen)
        write_text(files[0], '\n\n'.join([
            '# What each layer alone loses',
            sensitivity_table(rows, args.criterion, markdown=True),
            '![What each layer alone loses](report.png)',
            '# All layers together',
            assignment_table(assignments, args.criterion, markdown=True), '']))
        print(sensitivity_table(rows, args.criterion))
        print(assignment_table(assignments, args.criterion))
        print('written:', *map(osp.abspath, files), sep='\n  ')
    barrier()


if __name__ == '__main__':
    run_tool(main)
