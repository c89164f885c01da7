"""Tables as text and as Markdown."""
import io
from statistics import mean, stdev
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from rich import box
from rich.console import Console
from rich.table import Table

METRICS = dict(
    mAP='AP', mAP_50='AP50', mAP_75='AP75', mAP_s='APs', mAP_m='APm',
    mAP_l='APl')
CONTROL = 'float, fine-tuned'
Row = Mapping[str, Any]
# What a short table leaves out.
_DETAILS = {'APs', 'APm', 'APl', 'MACs quantized', 's/iter', 'MB training'}
_LOST = {'loss': 'loss - float', 'mAP': 'float AP - AP'}


def render(table: Table, width: int = 120) -> str:
    """Draw a table as text of at most ``width`` columns."""
    console = Console(
        file=io.StringIO(), width=width, markup=False, emoji=False)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return '\n'.join(line.rstrip() for line in text.splitlines() if line)


def group_rows(rows: Sequence[Row]) -> Dict[Tuple[str, str], List[Row]]:
    """Gather rows that differ in nothing but the seed, in their order.

    Returns:
        Rows by name and bits.
    """
    groups: Dict[Tuple[str, str], List[Row]] = {}
    for row in rows:
        groups.setdefault((row['name'], row['bits']), []).append(row)
    return groups


def map_table(rows: Sequence[Row],
              markdown: bool = False,
              brief: bool = False) -> str:
    """Tabulate COCO box AP and cost of several runs beside the first one's.

    Rows that differ in nothing but the seed become one line with the mean
    and, for AP, the standard deviation. A column is left out where no row
    has anything for it.

    Args:
        rows: Dictionaries with ``name``, ``bits`` (``'W/A'``,
            ``'mixed W/A'`` or ``'float'``) and either ``error`` or
            ``metrics``, AP values in [0, 1] by the names of mmdet's
            ``CocoMetric``; -1 where there is no such object. They may have
            ``cost``, the fields of :class:`~lcq_mmdet.report.cost.Cost`,
            ``seconds_per_iter`` and ``peak_memory`` in bytes. The first row
            is what the others are compared with; AP also with the mean of
            the rows called ``'float, fine-tuned'``, if there are any.
        markdown: Whether to write Markdown.
        brief: Whether to leave out AP by size of objects, the share of
            quantized multiply-accumulates and the costs of training.
    """
    baseline, groups = rows[0], group_rows(rows)
    control = _average(groups.get((CONTROL, 'float'), ()), 'metrics', 'mAP')
    lines = [
        _cells(name, bits, group, baseline, control)
        for (name, bits), group in groups.items()
    ]
    table = Table(box=box.MARKDOWN if markdown else box.SIMPLE)
    headings = [
        heading for heading in lines[0]
        if heading in ('run', 'AP') or any(line[heading] for line in lines)
        and not (brief and heading in _DETAILS)
    ]
    for heading in headings:
        table.add_column(
            heading, justify='left' if heading == 'run' else 'right')
    for line in lines:
        table.add_row(*(line[heading] for heading in headings))
    return render(table, width=1000 if markdown else 160)


def ratio_table(rows: Sequence[Row], markdown: bool = False) -> str:
    """Tabulate costs, and how they compare with the first of each case.

    Args:
        rows: Dictionaries with ``case`` and ``name``. They may have
            ``seconds``, times by what was measured, ``peak_memory`` and
            ``file_bytes``, both in bytes, ``relative_error``, the mean
            squared error over the variance, ``copy_share``, the bandwidth
            over that of a copy by what was measured, and ``metrics`` as
            :func:`map_table` takes them.
        markdown: Whether to write Markdown.
    """
    first: Dict[str, Row] = {}
    for row in rows:
        first.setdefault(row['case'], row)
    measured = list(
        dict.fromkeys(
            key for row in rows for key in row.get('seconds', {})))
    others = [(key, heading, unit) for key, heading, unit in (
        ('peak_memory', 'peak memory, MB', 1e6),
        ('file_bytes', 'file, MB', 1e6),
        ('relative_error', 'squared error / variance', 1),
    ) if any(key in row for row in rows)]
    table = Table(box=box.MARKDOWN if markdown else box.SIMPLE)
    table.add_column('case')
    table.add_column('')
    for key in measured:
        table.add_column(f'{key}, ms', justify='right')
    for _, heading, _ in others:
        table.add_column(heading, justify='right')
    evaluated = any('metrics' in row for row in rows)
    if evaluated:
        table.add_column('AP', justify='right')
    copied = any('copy_share' in row for row in rows)
    if copied:
        table.add_column("% of a copy's bandwidth", justify='right')
    for row in rows:
        baseline = first[row['case']]
        cells = [
            _compared(row['seconds'].get(key), baseline['seconds'].get(key),
                      1e-3, row is baseline) for key in measured
        ]
        cells += [
            _compared(row.get(key), baseline.get(key), unit, row is baseline)
            for key, _, unit in others
        ]
        if evaluated:
            ap = _get(row, 'metrics', 'mAP')
            cells.append('' if ap is None else f'{ap:.3f}')
        if copied:
            cells.append(', '.join(
                f'{share:.0%}'.rstrip('%')
                for share in row.get('copy_share', {}).values()))
        table.add_row(row['case'] if row is baseline else '', row['name'],
                      *cells)
    return render(table, width=1000 if markdown else 160)


def sensitivity_table(rows: Sequence[Row],
                      criterion: str,
                      markdown: bool = False) -> str:
    """Tabulate what layers lose alone, the most at the lowest bits first.

    Args:
        rows: Dictionaries with ``layer``, ``bits``, ``change``, ``proposed``
            and, of the layer, ``bytes`` and ``bops``.
        criterion: What is lost: ``'loss'`` or ``'mAP'``.
        markdown: Whether to write Markdown.
    """
    layers: Dict[str, Dict[int, Row]] = {}
    for row in rows:
        layers.setdefault(row['layer'], {})[row['bits']] = row
    widths = sorted({row['bits'] for row in rows})
    table = Table(box=box.MARKDOWN if markdown else box.SIMPLE)
    table.add_column('layer')
    for bits in widths:
        table.add_column(f'{_LOST[criterion]}, {bits} bits', justify='right')
    for heading in ('bits proposed', 'kB', 'MBOPs'):
        table.add_column(heading, justify='right')
    for name, by_bits in sorted(
            layers.items(), key=lambda item: -item[1][widths[0]]['change']):
        proposed = next(row for row in by_bits.values() if row['proposed'])
        table.add_row(
            name, *(f'{by_bits[bits]["change"]:+.4f}' for bits in widths),
            str(proposed['bits']), _number(proposed['bytes'], 1e3),
            _number(proposed['bops'], 1e6))
    return render(table, width=1000 if markdown else 160)


def _compared(value: Optional[float], baseline: Optional[float], unit: float,
              is_baseline: bool) -> str:
    text = _number(value, unit)
    if text and baseline and not is_baseline:
        text += f' ({value / baseline:.2f}x)'  # type: ignore[operator]
    return text


def _cells(name: str, bits: str, group: Sequence[Row], baseline: Row,
           control: Optional[float]) -> Dict[str, str]:
    """Write what a group of rows has for each column, by heading."""
    good = [row for row in group if 'error' not in row]
    is_baseline = good[:1] == [baseline]

    def average(*keys: str) -> Optional[float]:
        return _average(group, *keys)

    ap = average('metrics', 'mAP')

    def less(reference: Optional[float]) -> str:
        if ap is None or reference is None or is_baseline:
            return ''
        return f'{ap - reference:+.3f}'

    def ratio(value: Optional[float], *keys: str) -> str:
        reference = _get(baseline, *keys)
        if value is None or not reference or is_baseline:
            return ''
        return f' ({value / reference:.2f}x)'

    cells = {'run': name, 'bits W/A': bits}
    seeds = len(good) if len(good) == len(group) else f'{len(good)} of ' + str(
        len(group))
    cells['seeds'] = str(seeds) if len(group) > 1 else ''
    for key, heading in METRICS.items():
        value = average('metrics', key)
        known = value is not None and value >= 0
        cells[heading] = f'{value:.3f}' if known else '-' if good else ''
    if len(good) > 1:
        spread = stdev(row['metrics']['mAP'] for row in good)
        cells['AP'] += f' ± {spread:.3f}'
    if not good:
        cells['AP'] = 'failed'
    cells['AP - float'] = less(_get(baseline, 'metrics', 'mAP'))
    cells[f'AP - {CONTROL}'] = less(None if name == CONTROL else control)
    size = average('cost', 'bytes')
    cells['MB'] = _number(size, 1e6) + ratio(size, 'cost', 'bytes')
    cells['GBOPs'] = _number(average('cost', 'bops'), 1e9)
    share = average('cost', 'quantized_share')
    cells['MACs quantized'] = f'{share:.1%}' if share else ''
    seconds = average('seconds_per_iter')
    cells['s/iter'] = _number(seconds, 1) + ratio(seconds, 'seconds_per_iter')
    memory = average('peak_memory')
    cells['MB training'] = (
        _number(memory, 1e6) + ratio(memory, 'peak_memory'))
    return cells


def _average(rows: Sequence[Row], *keys: str) -> Optional[float]:
    """Average a value of the rows that did not fail, if each has it."""
    values = [_get(row, *keys) for row in rows if 'error' not in row]
    return mean(values) if values and None not in values else None


def _get(row: Row, *keys: str) -> Any:
    """Look up a nested value; ``None`` where there is none."""
    value: Any = row
    for key in keys:
        value = (value or {}).get(key)
    return value


def _number(value: Optional[float], unit: float) -> str:
    return '' if value is None else f'{value / unit:.3g}'
