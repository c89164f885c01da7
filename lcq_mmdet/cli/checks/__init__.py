"""What is checked before any long work."""
from .files import check_files
from .runs import check_training, sole_training

__all__ = ['check_files', 'check_training', 'sole_training']
