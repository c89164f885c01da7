"""How a command ends."""
import errno
import sys
from typing import Any, Callable

from lcq_mmdet.errors import LCQError


def run_tool(main: Callable[[], Any]) -> None:
    """Call ``main``; exit with 2 after a mistake or on a full disk.

    Either is told in one line.
    """
    try:
        main()
    except LCQError as error:
        sys.exit(_report_error(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(_report_error(f'{error}; make room and repeat the command'))


def _report_error(error: object) -> int:
    print(f'error: {error}', file=sys.stderr)
    return 2
