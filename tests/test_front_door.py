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
from lcq_cli import shared
from lcq_mmdet import LCQError
from lcq_mmdet.benchmark.kernels import DTYPES
from lcq_mmdet.cli import read_config
from lcq_mmdet.export.engines import ENGINES
from lcq_mmdet.quantization.config import QUANTIZERS
from lcq_mmdet.studies.sensitivity import CRITERIA

ROOT = CONFIGS.parent
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, *args):
        assert name.partition('.')[0] not in ('torch', 'mmdet', 'lcq_mmdet')
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


@pytest.mark.parametrize('name', lcq_cli.COMMANDS)
def test_help_of_a_command_needs_no_torch(name):
    found = run(name, '--help')
    assert not found.returncode, found.stderr
    assert found.stdout.startswith(f'usage: lcq {name} ')


@pytest.mark.parametrize('line, message', [
    ('train', 'lcq train: error: the following arguments are required: conf'),
    ('train nothing.py', "error: config='nothing.py': no such file"),
    ('test README.md a.pth', "error: config='README.md': must be a config: "),
    ('test configs/retinanet_lcq_4bit.py README.md --out a.txt',
     "error: --out='a.txt': must end in .pkl or .pickle"),
    ('test configs/retinanet_lcq_4bit.py README.md --engine openvino',
     "error: --engine='openvino': is for graphs (.onnx), and checkpoint="),
    ('export configs/retinanet_lcq_4bit.py README.md --out a.pt',
     "error: --out='a.pt': must end in .safetensors or .onnx"),
    ('sweep configs/retinanet_lcq_4bit.py --variant float a=1',
     "error: --variant 'float': must be a name of its own"),
    ('sensitivity configs/retinanet_lcq_4bit.py --bits 9',
     'error: --bits=9: must be an integer from 2 to 8'),
    ('benchmark kernels --bits 1', 'error: --bits=1: must be an integer'),
    ('benchmark train', 'lcq benchmark train: error: the following argum'),
    ('zoo-check --out zoo.md', "error: --out='zoo.md': must end in .json"),
    ('report runs --out-dir README.md', "error: --out-dir='README.md': "),
    ('make-toy-coco', 'lcq make-toy-coco: error: the following arguments'),
])
def test_mistake_is_told_without_torch(line, message):
    found = run(*line.split())
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith(message)


def test_choices_are_those_of_the_package():
    assert shared.ENGINES == ENGINES
    assert shared.CRITERIA == CRITERIA
    assert shared.QUANTIZERS == QUANTIZERS
    kernels = lcq_cli.parse('benchmark', ['kernels', '--dtype', 'bfloat16'])
    assert kernels.dtype in DTYPES and len(DTYPES) == 3


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


def test_names_of_configs_are_unique():
    """openmim finds a config of a package by its name."""
    names = [path.name for path in CONFIGS.rglob('*.py')]
    assert len(names) == len(set(names))
