"""What the commands share."""
from .checks import check_files, check_present, check_training, sole_process
from .configs import build_runner, join_launcher, load_config, read_config
from .running import run_tool

__all__ = [
    'build_runner', 'check_files', 'check_present', 'check_training',
    'join_launcher', 'load_config', 'read_config', 'run_tool', 'sole_process'
]
