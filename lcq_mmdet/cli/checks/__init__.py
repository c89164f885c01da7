"""What is checked before any long work."""
from .files import check_files

__all__ = ['check_files']
