"""What is checked before any long work."""
from .files import check_files, check_present
from .runs import check_training, sole_process

__all__ = ['check_files', 'check_present', 'check_training', 'sole_process']
