"""Tables as text and as Markdown."""
import io
from typing import Any, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

METRICS = dict(
    mAP='AP', mAP_50='AP50', mAP_75='AP75', mAP_s='APs', mAP_m='APm',
    mAP_l='APl')


def render(table: Table, width: int = 120) -> str:
    """Draw a table as text of at most ``width`` columns."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return '\n'.join(line.rstrip() for line in text.splitlines() if line)


def map_table(rows: Sequence[Mapping[str, Any]],
              markdown: bool = False) -> str:
    """Tabulate COCO box AP of several runs beside the first one's.

    Args:
        rows: Dictionaries with ``name``, ``bits`` (``'W/A'`` or
            ``'float'``) and ``metrics``, AP values in [0, 1] by the names
            of mmdet's ``CocoMetric``; -1 where there is no such object.
        markdown: Whether to write Markdown.
    """
    table = Table(box=box.MARKDOWN if markdown else box.SIMPLE)
    table.add_column('run')
    for heading in ('bits W/A', *METRICS.values(), 'AP - float'):
        table.add_column(heading, justify='right')
    baseline = rows[0]['metrics']['mAP']
    for index, row in enumerate(rows):
        values = [row['metrics'].get(key, -1) for key in METRICS]
        table.add_row(
            row['name'], row['bits'],
            *(f'{value:.3f}' if value >= 0 else '-' for value in values),
            f'{values[0] - baseline:+.3f}' if index else '')
    return render(table)
