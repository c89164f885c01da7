"""What the commands share."""
from .arguments import add_launcher_arguments, add_runner_arguments
from .checks import check_files, check_training, sole_training
from .configs import build_runner, join_launcher, load_config, read_config
from .running import run_tool

__all__ = [
    'add_launcher_arguments', 'add_runner_arguments', 'build_runner',
    'check_files', 'check_training', 'join_launcher', 'load_config',
    'read_config', 'run_tool', 'sole_training'
]
