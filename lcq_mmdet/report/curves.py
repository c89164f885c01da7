"""Results drawn as curves."""
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure

from .tables import group_rows


def plot_map(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Draw AP against bits and against size, with the spread over seeds.

    Args:
        rows: What :func:`~lcq_mmdet.report.tables.map_table` takes, with
            ``cost``, ``weight_bits`` and ``act_bits``; the first is the float
            detector's. Rows with other bits of inputs than of weights are a
            curve of their own.
        path: Picture to write; the ending is the format.
    """
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    by_bits, by_size = figure.subplots(1, 2, sharey=True)
    # By name, and bits of the inputs where weights have others.
    curves: Dict[Tuple[str, int],
                 List[Tuple[float, float, float, float]]] = {}
    for (name, bits_text), group in group_rows(rows[1:]).items():
        good = [row for row in group if 'error' not in row]
        if good:
            ap = np.array([row['metrics']['mAP'] for row in good])
            if bits_text == 'float':
                for ax in (by_bits, by_size):
                    ax.axhline(ap.mean(), color='.5', lw=1, ls='--',
                               label=name)
                continue
            bits, act_bits = good[0]['weight_bits'], good[0]['act_bits']
            curve = name, 0 if bits == act_bits else act_bits
            curves.setdefault(curve, []).append(
                (bits, good[0]['cost']['bytes'] / 1e6, ap.mean(),
                 ap.std(ddof=1) if len(ap) > 1 else 0.))
    colors = {'uniform': 'C0', 'lcq': 'C3'}
    for (name, act_bits), points in sorted(curves.items()):
        bits, size, ap, spread = np.array(sorted(points)).T
        style = ':' if name.endswith('calibrated') else '-'
        variant = f'{name.split(",")[0]} {act_bits or ""}'.strip()
        color = colors.setdefault(variant, f'C{len(colors) + 2}')
        label = f'{name}, inputs {act_bits} bits' if act_bits else name
        for ax, x in ((by_bits, bits), (by_size, size)):
            ax.errorbar(
                x, ap, spread, label=label, ls=style, color=color,
                marker='s' if act_bits else 'o', ms=4, capsize=3)
    for ax in (by_bits, by_size):
        ax.axhline(
            rows[0]['metrics']['mAP'], color='.5', lw=1, label='float')
        ax.grid(alpha=0.3)
    by_bits.set(xlabel='bits of the weights', ylabel='COCO box AP')
    by_bits.xaxis.get_major_locator().set_params(integer=True)
    float_size = rows[0]['cost']['bytes'] / 1e6
    by_size.set(xlabel=f'size of the model in MB (float: {float_size:.3g})')
    by_bits.legend()
    figure.savefig(path, dpi=110)


def plot_sensitivity(rows: Sequence[Mapping[str, Any]], criterion: str,
                     path: str) -> None:
    """Draw what each layer loses alone, and its proposed bits.

    Args:
        rows: What :func:`~lcq_mmdet.report.tables.sensitivity_table` takes.
        criterion: What is lost: ``'loss'`` or ``'mAP'``.
        path: Picture to write; the ending is the format.
    """
    layers = list(dict.fromkeys(row['layer'] for row in rows))
    figure = Figure(
        figsize=(max(4, 1 + 0.24 * len(layers)), 4.8), layout='constrained')
    losses, widths = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    for bits in sorted({row['bits'] for row in rows}):
        change = {r['layer']: r['change'] for r in rows if r['bits'] == bits}
        losses.plot(
            layers, [change[name] for name in layers], marker='o', ms=4,
            label=f'{bits} bits')
    proposed = {r['layer']: r['bits'] for r in rows if r['proposed']}
    widths.bar(layers, [proposed[name] for name in layers], color='.6')
    # Most layers lose little, and a few much; noise may be a gain.
    largest = max(abs(row['change']) for row in rows)
    losses.set_yscale('symlog', linthresh=largest / 100 or 1)
    losses.axhline(0, color='.5', lw=1)
    losses.grid(alpha=0.3)
    losses.legend(ncols=4, loc='upper center')
    what = 'loss added' if criterion == 'loss' else 'AP lost'
    losses.set_ylabel(f'{what} by one layer alone')
    widths.set_ylabel('bits proposed')
    widths.tick_params('x', rotation=90, labelsize=7)
    figure.savefig(path, dpi=110)
