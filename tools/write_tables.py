"""Write the tables of Markdown files from the results in benchmarks/.

A table stands between ``<!-- table: FILE.json -->`` and ``<!-- end -->``;
FILE is relative to the Markdown file. Words after it select rows: the first
one and those whose name has one of the words. ``brief`` before them leaves out
columns.
"""
import argparse
import json
import re
from pathlib import Path

from lcq_mmdet.cli import run_tool
from lcq_mmdet.errors import LCQError
from lcq_mmdet.report.tables import map_table, ratio_table

_TABLE = re.compile(
    r'(<!-- table: (\S+)( brief)?([^\n]*) -->\n).*?(<!-- end -->)', re.DOTALL)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('files', nargs='+', type=Path, help='Markdown files')
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; fail if a table is not up to date')
    return parser.parse_args()


def with_tables(path: Path) -> str:
    """Return the file's text with its tables written anew."""

    def table(match: 're.Match[str]') -> str:
        source = path.parent / match[2]
        if not source.is_file():
            raise LCQError(f'{path}: the table {match[2]!r} has no such file')
        rows = json.loads(source.read_text())['rows']
        words = match[4].split()
        if words:
            rows = rows[:1] + [
                row for row in rows[1:]
                if any(word in row['name'] for word in words)
            ]
        if 'case' in rows[0]:
            text = ratio_table(rows, markdown=True)
        else:
            text = map_table(rows, markdown=True, brief=bool(match[3]))
        return f'{match[1]}{text}\n{match[5]}'

    return _TABLE.sub(table, path.read_text())


def main() -> None:
    args = parse_args()
    for path in args.files:
        text = with_tables(path)
        if args.check and text != path.read_text():
            raise LCQError(f'{path}: its tables are out of date; run '
                           f"'python tools/write_tables.py {path}'")
        if not args.check:
            path.write_text(text)


if __name__ == '__main__':
    run_tool(main)
