"""Commands and code of the documentation are what they claim to be."""
import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import CONFIGS
from mmengine.config import Config

import lcq_cli
from lcq_mmdet import apply_lcq
from lcq_mmdet.cli import read_config
from lcq_mmdet.conversion.config import OPTIONS

ROOT = CONFIGS.parent
PAGES = [
    ROOT / 'README.md', ROOT / 'CONTRIBUTING.md',
    *sorted((ROOT / 'docs').glob('*.md'))
]
_FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.DOTALL | re.MULTILINE)


def commands(text):
    """Find the command lines of ``lcq``, in blocks and in running text."""
    text = text.replace('\\\n', ' ')
    lines = re.findall(r'^(?:    )?(lcq .+)$', text, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def blocks(path, language):
    return [code for found, code in _FENCE.findall(path.read_text())
            if found == language]


def unscoped(value):
    """Leave out the scope that mmengine writes into a base of a package."""
    if isinstance(value, dict):
        return {key: unscoped(item) for key, item in value.items()
                if key != '_scope_'}
    return value


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_arguments_of_commands_are_taken(path):
    for name, *rest in commands(path.read_text()):
        module = f'lcq_cli.parsers.{name.replace("-", "_")}'
        assert name in lcq_cli.COMMANDS
        if '--help' in rest or 'COMMAND' in name:
            continue
        parsers = importlib.import_module(module)
        args = parsers.make_parser().parse_args(rest)
        if hasattr(parsers, 'check'):
            assert parsers.check(args) is None


def test_there_are_commands_to_check():
    assert sum(len(commands(path.read_text())) for path in PAGES) > 15


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_python_compiles(path):
    for code in blocks(path, 'python'):
        compile(code, path.name, 'exec')


def test_config_of_the_readme_is_what_bits_4_makes(tmp_path):
    code = next(code for code in blocks(ROOT / 'README.md', 'python')
                if 'LCQModel' in code)
    (tmp_path / 'mine.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'mine.py')
    base = read_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    expected = apply_lcq(base, bits=4)
    for key in ('model', 'default_hooks', 'optim_wrapper', 'custom_imports'):
        assert unscoped(cfg[key]) == unscoped(expected[key]), key


def test_all_options_are_documented():
    text = (ROOT / 'docs' / 'options.md').read_text()
    for key in OPTIONS:
        assert f'`{key}`' in text, key
    for name in lcq_cli.COMMANDS:
        assert f'| `{name}` |' in text, name


@pytest.mark.slow
def test_commands_of_the_first_steps_run(tmp_path):
    """What stands after ``<!-- run -->``, outside of any checkout."""
    text = (ROOT / 'docs' / 'get_started.md').read_text()
    parts = re.findall(r'<!-- run -->\n```console\n(.*?)```', text, re.DOTALL)
    for arguments in [c for part in parts for c in commands(part)]:
        found = subprocess.run(
            [sys.executable, '-m', 'lcq_mmdet', *arguments], cwd=tmp_path,
            env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True,
            text=True)
        assert not found.returncode, found.stderr[-2000:]
    assert (tmp_path / 'model.safetensors').is_file()
    assert (tmp_path / 'work_dirs/sweep/report.md').is_file()


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 200
