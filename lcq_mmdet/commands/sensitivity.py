"""Rank layers by what quantizing each alone loses, and propose their bits."""
import argparse
import os.path as osp
from typing import Any, Dict, List, Optional

from mmengine.dist import barrier, is_main_process

from lcq_mmdet.cli import (add_launcher_arguments, check_files, join_launcher,
                           load_config)
from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import check_bits
from lcq_mmdet.report.curves import plot_sensitivity
from lcq_mmdet.report.records import write_csv, write_record, write_text
from lcq_mmdet.report.tables import map_table, sensitivity_table
from lcq_mmdet.studies.assign import assign_bits
from lcq_mmdet.studies.sensitivity import COSTS, CRITERIA, Sensitivity
from lcq_mmdet.studies.start import check_float


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
                uniform: Optional[Dict[str, Any]]) -> Dict[str, float]:
    """Collect the most that a detector may cost, by what it costs."""
    given = dict(bytes=args.budget_mb and args.budget_mb * 1e6,
                 bops=args.budget_gbops and args.budget_gbops * 1e9)
    budget = {}
    for key in COSTS:
        limits = [given[key], uniform and uniform['cost'][key]]
        limits = [limit for limit in limits if limit is not None]
        if limits:
            budget[key] = min(limits)
    return budget


def write_report(rows: List[Dict[str, Any]], runs: List[Dict[str, Any]],
                 criterion: str, out_dir: str) -> None:
    path = {
        name: osp.join(out_dir, name)
        for name in ('report.md', 'report.json', 'layers.json', 'layers.csv',
                     'layers.png', 'overrides.py')
    }
    lines = [
        f'        {row["layer"]!r}: dict(bits={row["bits"]}),'
        for row in rows if row['proposed']
    ]
    write_text(path['overrides.py'], '\n'.join(
        ['model = dict(', '    overrides={', *lines, '    })', '']))
    write_record(path['report.json'], runs)
    write_record(path['layers.json'], rows)
    write_csv(path['layers.csv'], rows)
    plot_sensitivity(rows, criterion, path['layers.png'])
    title = 'What each layer alone loses'
    write_text(path['report.md'], '\n\n'.join([
        '# All layers together, calibrated', map_table(runs, markdown=True),
        f'# {title}', sensitivity_table(rows, criterion, markdown=True),
        f'![{title}](layers.png)', '']))
    print(sensitivity_table(rows, criterion))
    print(map_table(runs))
    print('written:', *map(osp.abspath, path.values()), sep='\n  ')


def main() -> None:
    args = parse_args()
    check_budget(args)
    cfg = load_config(args)
    if args.checkpoint:
        cfg.load_from = args.checkpoint
    check_files(cfg, ('train_dataloader', 'test_dataloader'))
    check_float(cfg)
    join_launcher(cfg)

    sensitivity = Sensitivity(cfg, args.criterion, args.num_batches)
    rows: List[Dict[str, Any]] = []
    for bits in sorted(set(args.bits)):
        measured, rest = sensitivity.layers(bits)
        rows += measured
    runs = [sensitivity.evaluate('float')]
    if args.budget_bits is not None:
        runs.append(sensitivity.evaluate('uniform bits', args.budget_bits))
    budget = find_budget(args, runs[1] if runs[1:] else None)
    chosen = assign_bits(
        rows, {key: most - rest[key]
               for key, most in budget.items()})
    for row in rows:
        row['proposed'] = chosen[row['layer']] == row['bits']
    runs.append(
        sensitivity.evaluate('proposal', min(args.bits),
                             {name: dict(bits=bits)
                              for name, bits in chosen.items()}))
    if is_main_process():
        write_report(rows, runs, args.criterion, cfg.work_dir)
    barrier()
