"""tools/zoo_check.py, on a small zoo of its own."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_options
from mmengine.config import Config

TOOL = Path(__file__).parents[1] / 'tools' / 'zoo_check.py'


@pytest.fixture(scope='module')
def zoo(tmp_path_factory):
    """A root with a family that runs, one that does not, one without model."""
    root = tmp_path_factory.mktemp('zoo')
    cfg = Config.fromfile(TOOL.parents[1] / 'configs/toy/retinanet_r18_toy.py')
    cfg.merge_from_dict(tiny_options(root))
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
    texts = dict(
        runs=Config(dict(model=cfg.model)).pretty_text,
        broken='model = dict(type="NoSuchDetector")',
        data='dataset_type = "CocoDataset"')
    for family, text in texts.items():
        folder = root / 'configs' / family
        folder.mkdir(parents=True)
        (folder / 'a.py').write_text(text)
    return root


@pytest.fixture
def call(zoo, tmp_path):
    """Check the zoo; return exit status, errors, and the rows by config.

    In a process that computes nothing, as it forks.
    """

    def called(*args):
        out = tmp_path / 'zoo.json'
        result = subprocess.run(
            [sys.executable, str(TOOL), '--root', str(zoo), '--out', str(out),
             *args], capture_output=True, text=True)
        rows = json.loads(out.read_text())['rows'] if out.is_file() else []
        return result.returncode, result.stderr, {
            row['config']: row for row in rows}

    return called


def test_each_config_is_quantized_or_says_why_not(call, tmp_path):
    status, errors, rows = call()
    assert status == 0, errors
    assert rows['runs/a.py']['status'] == 'ok'
    assert rows['runs/a.py']['layers'] == 28
    assert 0.5 < rows['runs/a.py']['share'] < 1
    assert rows['broken/a.py']['status'] == 'float'
    assert 'NoSuchDetector' in rows['broken/a.py']['reason']
    assert rows['data/a.py']['status'] == 'no model'
    table = (tmp_path / 'zoo.md').read_text()
    assert 'runs/a.py' in table and 'NoSuchDetector' in table


def test_what_conversion_breaks_is_a_failure(call):
    status, errors, rows = call('--family', 'runs', '--modules', 'nothing.*')
    assert status and rows['runs/a.py']['status'] == 'failed'
    assert 'nothing.*' in rows['runs/a.py']['reason']
    assert 'runs/a.py' in errors


def test_what_is_done_is_not_checked_again(call, tmp_path):
    row = dict(config='runs/a.py', status='float', reason='of earlier')
    (tmp_path / 'zoo.json.partial').write_text(json.dumps([row]))
    assert call('--family', 'runs')[2]['runs/a.py']['reason'] == 'of earlier'
    assert not (tmp_path / 'zoo.json.partial').exists()


@pytest.mark.parametrize('args, named', [
    (['--family', 'none'], '--family'), (['--root', '/nowhere'], '--root'),
    (['--out', 'zoo.md'], '--out')])
def test_bad_arguments_are_named(args, named, call):
    status, errors, _ = call(*args)
    assert status == 2 and errors.startswith(f'error: {named}')
