"""Rank layers by what quantizing each alone loses, and propose their bits."""
import argparse
import os.path as osp
from typing import Any, Dict, List, Optional

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process

from lcq_mmdet.cli import check_files, join_launcher, load_config, sole_process
from lcq_mmdet.report.curves import plot_sensitivity
from lcq_mmdet.report.records import write_csv, write_record, write_text
from lcq_mmdet.report.tables import map_table, sensitivity_table
from lcq_mmdet.studies.assign import assign_bits, both_bits, check_budget
from lcq_mmdet.studies.sensitivity import COSTS, Sensitivity
from lcq_mmdet.studies.start import check_float


def find_budget(args: argparse.Namespace,
                uniform: Optional[Dict[str, float]]) -> Dict[str, float]:
    """Collect the most that a detector may cost, by what it costs.

    Args:
        args: Arguments of the command.
        uniform: What it costs with ``--budget-bits``, if they are given.
    """
    given = dict(bytes=args.budget_mb and args.budget_mb * 1e6,
                 bops=args.budget_gbops and args.budget_gbops * 1e9)
    budget = {}
    for key in COSTS:
        limits = [given[key], uniform and uniform[key]]
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
        f'        {layer!r}: dict(weight_bits={settings["weight_bits"]}, '
        f'act_bits={settings["act_bits"]}),'
        for layer, settings in runs[-1]['overrides'].items()
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


def main(args: argparse.Namespace) -> None:
    if not (args.budget_bits or args.budget_mb or args.budget_gbops):
        args.budget_bits = 3
    cfg = load_config(args, '_sensitivity')
    if args.checkpoint:
        cfg.load_from = args.checkpoint
    check_files(cfg, ('train_dataloader', 'test_dataloader'))
    check_float(cfg)
    join_launcher(cfg)

    with sole_process(cfg, 'measurement'):
        _measure(args, cfg)


def _measure(args: argparse.Namespace, cfg: Config) -> None:
    """Measure, propose and report in a work directory of its own."""
    sensitivity = Sensitivity(cfg, args.criterion, args.num_batches)
    widths = sorted(set(args.bits))
    uniform = None
    if args.budget_bits is not None:
        uniform = sensitivity.cost(args.budget_bits, everywhere=False)
    budget = find_budget(args, uniform)
    check_budget(
        {bits: sensitivity.cost(bits) for bits in (widths[0], widths[-1])},
        budget)
    rows: List[Dict[str, Any]] = []
    for bits in widths:
        measured, rest = sensitivity.layers(bits)
        rows += measured
    runs = [sensitivity.evaluate('float')]
    if args.budget_bits is not None:
        runs.append(sensitivity.evaluate('uniform bits', args.budget_bits))
    chosen = assign_bits(
        rows, {key: most - rest[key]
               for key, most in budget.items()})
    for row in rows:
        row['proposed'] = chosen[row['layer']] == row['bits']
    runs.append(
        sensitivity.evaluate('proposal', min(args.bits),
                             {name: both_bits(bits)
                              for name, bits in chosen.items()}))
    if is_main_process():
        write_report(rows, runs, args.criterion, cfg.work_dir)
    barrier()
