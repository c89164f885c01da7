"""The command lcq, and configs by the name of the package."""
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import CONFIGS
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

import lcq_cli
from lcq_mmdet import LCQError
from lcq_mmdet.cli import read_config

ROOT = CONFIGS.parent
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, *args):
        assert name.partition('.')[0] not in ('torch', 'mmengine', 'numpy')
sys.meta_path.insert(0, Block())
import lcq_cli
lcq_cli.main()
"""


def run(*arguments):
    return subprocess.run([sys.executable, '-c', BLOCKED, *arguments],
                          capture_output=True, text=True, cwd=ROOT)


def test_help_lists_all_commands_without_torch():
    found = run('--help')
    assert not found.returncode, found.stderr
    files = {p.stem for p in (ROOT / 'lcq_mmdet/commands').glob('[!_]*.py')}
    assert {name.replace('-', '_') for name in lcq_cli.COMMANDS} == files
    for name in lcq_cli.COMMANDS:
        assert f'  {name} ' in found.stdout


def test_unknown_command_is_named_without_torch():
    found = run('trian')
    assert found.returncode == 2
    assert found.stderr.startswith("error: 'trian': no such command; there")


def test_command_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', sys.argv)
    lcq_cli.main(['make-toy-coco', str(tmp_path / 'set'), '--images', '1',
                  '--size', '64'])
    assert 'set: written' in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        lcq_cli.main(['train', 'nothing.py'])
    assert caught.value.code == 2
    assert "config='nothing.py': no such file" in capsys.readouterr().err


@pytest.mark.parametrize('name', ['retinanet_lcq_4bit.py',
                                  'toy/retinanet_r18_lcq_2bit_toy.py'])
def test_config_is_found_by_the_name_of_the_package(name):
    expected = Config.fromfile(CONFIGS / name).to_dict()
    assert read_config(f'lcq_mmdet::{name}').to_dict() == expected


def test_config_that_there_is_not_is_named():
    with pytest.raises(LCQError, match='configs/nothing.py.: no such file'):
        read_config('lcq_mmdet::nothing.py')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    subprocess.run([
        sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps',
        '--no-build-isolation', '-w', str(folder), str(ROOT)
    ], check=True, capture_output=True)
    return next(folder.glob('*.whl'))


def test_wheel_is_whole(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('configs', 'tools'):
        for path in (ROOT / folder).rglob('*.*'):
            if '__pycache__' not in path.parts:
                assert f'lcq_mmdet/.mim/{path.relative_to(ROOT)}' in names
    for path in (ROOT / 'lcq_mmdet').rglob('*.py'):
        if '.mim' not in path.parts:
            assert str(path.relative_to(ROOT)) in names
    assert {'lcq_mmdet/py.typed', 'lcq_cli/__init__.py',
            'lcq_mmdet/.mim/model-index.yml'} <= names


def test_installed_wheel_has_the_configs(wheel, tmp_path):
    """Outside of any checkout, also as the base of another config."""
    subprocess.run([
        sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target',
        str(tmp_path / 'site'), str(wheel)
    ], check=True, capture_output=True)
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'lcq_mmdet::toy/retinanet_r18_lcq_2bit_toy.py'")
    code = ('import lcq_mmdet; from mmengine.config import Config; '
            "print(lcq_mmdet.__file__, Config.fromfile('mine.py').model.bits)")
    found = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True,
        cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(tmp_path / 'site')))
    assert found.stdout.split()[-2:] == [
        str(tmp_path / 'site/lcq_mmdet/__init__.py'), '2'], found.stderr


def test_plain_safetensors_file_is_a_state_dict(tmp_path):
    path = str(tmp_path / 'plain.safetensors')
    save_file(dict(weight=torch.arange(3.)), path)
    state = CheckpointLoader.load_checkpoint(path, 'cpu')['state_dict']
    assert state['weight'].tolist() == [0, 1, 2]
