"""Collecting what is wrong, to tell all of it at once."""
import sys
from typing import Dict, List

from lcq_mmdet.errors import LCQError


class Problems:
    """Mistakes, which end a command, and warnings, which do not.

    Each is one line, kept once.
    """

    def __init__(self) -> None:
        self._mistakes: Dict[str, None] = {}
        self._warnings: Dict[str, None] = {}

    def mistake(self, text: str) -> None:
        """Note what would fail or give wrong results."""
        self._mistakes[text] = None

    def warn(self, text: str) -> None:
        """Note what mmdet can train with, and a user should know."""
        self._warnings[text] = None

    @property
    def mistakes(self) -> List[str]:
        return [*self._mistakes]

    @property
    def warnings(self) -> List[str]:
        return [*self._warnings]

    def tell(self) -> None:
        """Print the warnings.

        Raises:
            LCQError: If there are mistakes, a line for each.
        """
        for text in self._warnings:
            print(f'warning: {text}', file=sys.stderr)
        if self._mistakes:
            raise LCQError('\nerror: '.join(self._mistakes))
