"""What a user's mistake raises, and how its message lists names."""
from typing import List


class LCQError(ValueError):
    """A mistake in what the user gave, told in one line."""


def some(names: List[str], most: int = 3) -> str:
    """Count names and show a few."""
    if not names:
        return '0'
    shown = ', '.join(names[:most]) + (', ...' if len(names) > most else '')
    return f'{len(names)} ({shown})'
