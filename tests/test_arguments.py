"""Paths on the command line that are swapped, missing or of another kind."""
import argparse
import os
import subprocess
import sys

import pytest

from lcq_cli import paths
from lcq_cli.paths import check_paths


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config and checkpoints, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.py').write_text('model = dict()')
    (tmp_path / 'runs').mkdir()
    for name, content in {
            'a.pth': b'PK\x03\x04',
            'runs/epoch_1.pth': b'PK',
            'runs/a.py': b'',
            'empty.pth': b'',
            'lfs.pth': b'version https://git-lfs.github.com/spec/v1',
            'page.pth': b'\n<!DOCTYPE html>',
            'a.txt': b'text'
    }.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def check(**given):
    return check_paths(argparse.Namespace(**given))


@pytest.mark.parametrize('given', [
    dict(config='a.py', checkpoint='a.pth', out='runs/a.onnx'),
    dict(config='mmdet::a/b.py', checkpoint='https://host/a.pth', out=None),
    dict(config=['a.py', 'runs/a.py'], work_dir='new/run'),
    dict(config='a.py', resume='auto', work_dir=None),
    dict(config='a.py', resume='a.pth', cfg_options=dict(a=1)),
    dict(work_dirs=['runs', 'runs'], out_dir='report'),
])
def test_sound_arguments_pass(folder, given):
    assert check(**given) is None


@pytest.mark.parametrize('given, message', [
    (dict(config='a.pth', checkpoint='a.py'),
     "config='a.pth': is a checkpoint, and checkpoint='a.py' a config; give "
     'the config first'),
    (dict(config='a.pth'), "config='a.pth': is a checkpoint; give its config"),
    (dict(config='none.onnx', checkpoint='a.pth'), 'is a checkpoint'),
    (dict(config='runs'), "config='runs': is a folder; give runs/a.py"),
    (dict(config='none.py'), "config='none.py': no such file"),
    (dict(config=['a.py', 'none.py']), "config='none.py': no such file"),
    (dict(config='a.txt'), "config='a.txt': must be a config: .py, "),
    (dict(config='a.py', checkpoint='runs'),
     "checkpoint='runs': is a folder; give a checkpoint in it, such as "
     'runs/epoch_1.pth'),
    (dict(config='a.py', checkpoint='a.py'),
     "checkpoint='a.py': is a config; give a checkpoint"),
    (dict(config='a.py', checkpoint='runs/epoch_2.pth'),
     "no such file; give one of its folder, such as runs/epoch_1.pth"),
    (dict(config='a.py', checkpoint='a.onnx'),
     "checkpoint='a.onnx': no such file; lcq export writes it"),
    (dict(checkpoint='empty.pth'), 'is empty; copy or download it again'),
    (dict(checkpoint='lfs.pth'), "is a pointer of Git LFS"),
    (dict(checkpoint='page.pth'), 'is a web page and not a checkpoint'),
    (dict(config='a.py', resume='runs'), "--resume='runs': is a folder"),
    (dict(work_dirs=['runs', 'runs/epoch_1.pth']),
     "work_dirs='runs/epoch_1.pth': is a file; give the folder of the run, "
     'runs'),
    (dict(out='runs'), "--out='runs': is a folder; give a file in it"),
    (dict(config='a.py', checkpoint='a.pth', out='./a.pth'),
     "--out='./a.pth': is what is read, too"),
    (dict(out='new/a.onnx'),
     "--out='new/a.onnx': cannot be written, there is no folder 'new'"),
    (dict(out='a.txt/b.onnx'), "a.txt' is a file; choose another folder"),
    (dict(work_dir='a.txt'), "--work-dir='a.txt': "),
    (dict(out_dir='a.txt/b'), "--out-dir='a.txt/b': "),
])
def test_mistake_comes_with_its_remedy(folder, given, message):
    assert message in check(**given)


@pytest.mark.parametrize('given', [
    dict(out='locked/a.onnx'), dict(work_dir='locked'),
    dict(out_dir='locked/new')
])
def test_folder_that_cannot_be_written_is_told(folder, given, monkeypatch):
    """A superuser can write everywhere, so access is asked in its place."""
    (folder / 'locked').mkdir()
    access = os.access
    monkeypatch.setattr(
        paths.os, 'access', lambda path, mode: not path.endswith(
            'locked') and access(path, mode))
    assert "locked' cannot be written; choose another folder" in check(**given)


def test_nothing_slow_is_imported():
    result = subprocess.run(
        [sys.executable, '-c', 'import runpy, sys\n'
         f'runpy.run_path({paths.__file__!r})\n'
         'print(*(m for m in sys.modules if m in sys.argv))',
         'torch', 'numpy', 'mmengine', 'mmdet', 'lcq_mmdet'],
        capture_output=True, text=True)
    assert result.stdout.split() == [], result.stderr
