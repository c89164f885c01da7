import csv
import io
import json
import locale
import os
import sys

import pytest
import torch

from lcq_mmdet import LCQError, __version__
from lcq_mmdet.report import records
from lcq_mmdet.report.records import (write_csv, write_markdown, write_record,
                                      write_text)

CPU = '''processor : 0
model name : Xeon 8 @ 2 GHz
flags : fpu avx512f avx512_vnni

'''
needs_full = pytest.mark.skipif(
    not os.path.exists('/dev/full'), reason='needs a device that is full')
ROWS = [
    dict(name='float', bits='float', seed=None,
         metrics=dict(mAP=0.5, mAP_50=0.75), cost=dict(bytes=8)),
    dict(name='lcq', bits='4/4', seed=3, error='RuntimeError: it, "broke"'),
]


def test_file_is_written_and_replaced(tmp_path):
    path = tmp_path / 'report.md'
    for text in ('a longer text', 'short ± 1'):
        write_text(str(path), text)
        assert path.read_text(encoding='utf-8') == text
    assert os.listdir(tmp_path) == ['report.md']


@needs_full
@pytest.mark.parametrize('size', [10, 2**20])
@pytest.mark.parametrize('old', ['old', None])
def test_full_disk_leaves_the_old_file(tmp_path, size, old):
    path = tmp_path / 'report.md'
    if old:
        path.write_text(old)
    (tmp_path / 'report.md.tmp').symlink_to('/dev/full')
    with pytest.raises(LCQError, match='No space left on device') as info:
        write_text(str(path), size * 'x')
    assert str(path) in str(info.value) and '\n' not in str(info.value)
    assert os.listdir(tmp_path) == (['report.md'] if old else [])
    assert not old or path.read_text() == old
    write_text(str(path), 'new')
    assert path.read_text() == 'new'


def test_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path):
    (tmp_path / 'report.md').mkdir()
    with pytest.raises(LCQError, match='cannot be written'):
        write_text(str(tmp_path / 'report.md'), 'x')
    with pytest.raises(LCQError, match='No such file or directory'):
        write_text(str(tmp_path / 'none' / 'report.md'), 'x')
    assert os.listdir(tmp_path) == ['report.md']


def test_text_is_utf_8_wherever_it_is_written(tmp_path):
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, 'C')
        write_text(str(tmp_path / 'report.md'), '0.3 ± 0.1')
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert (tmp_path / 'report.md').read_bytes() == b'0.3 \xc2\xb1 0.1'


@pytest.fixture
def env(monkeypatch):
    """What the machine is, as mmengine tells it; to be changed by a test."""
    env = {'Python': '3.11', 'PyTorch': '2.13.0', 'GPU 0': 'H200', 'GCC': '12'}
    monkeypatch.setattr(records, 'collect_env', lambda: env)
    return env


@pytest.fixture
def written(env, tmp_path):

    def write():
        write_record(str(tmp_path / 'report.json'), ROWS)
        return json.loads((tmp_path / 'report.json').read_text())

    return write


def test_record_says_how_it_came_about(written, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [
        'tools/sweep.py', 'a.py', '--cfg-options', "model.exclude=['neck']"
    ])
    monkeypatch.setattr(sys, 'executable', '/usr/bin/python3')
    record = written()
    assert record['command'] == (
        'python3 tools/sweep.py a.py --cfg-options '
        '\'model.exclude=[\'"\'"\'neck\'"\'"\']\'')
    assert record['versions'] == dict(
        lcq_mmdet=__version__, Python='3.11', PyTorch='2.13.0')
    monkeypatch.setattr('builtins.open', opening('/proc/cpuinfo', CPU))
    assert written()['hardware'] == dict(
        cpu='Xeon 8 @ 2 GHz', vnni=True, cpus=os.cpu_count(),
        threads=torch.get_num_threads(), gpus='H200')
    assert record['rows'] == ROWS


def opening(path, text):
    real = open
    return lambda name, *args, **options: (
        io.StringIO(text) if name == path else real(name, *args, **options))


def test_record_of_a_machine_that_does_not_tell_its_cpu(written, monkeypatch):
    monkeypatch.setattr('builtins.open', opening('/proc/cpuinfo', 'a : b\n'))
    assert written()['hardware']['vnni'] is False


@pytest.mark.parametrize('gpus, text', [
    ({}, 'none'),
    ({'GPU 0,1': 'H200'}, '2 x H200'),
    ({'GPU 0,2': 'H200', 'GPU 1': 'A100'}, '2 x H200, A100'),
])
def test_record_names_all_gpus(written, env, gpus, text):
    del env['GPU 0']
    env.update(gpus)
    assert written()['hardware']['gpus'] == text


def test_real_environment_can_be_recorded(tmp_path):
    write_record(str(tmp_path / 'report.json'), [])
    record = json.loads((tmp_path / 'report.json').read_text())
    assert record['versions'].keys() >= {'Python', 'PyTorch', 'MMEngine'}


def test_record_needs_no_git(written, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert written()['commit'] == 'unknown'


def test_csv_has_a_column_a_value(tmp_path):
    write_csv(str(tmp_path / 'report.csv'), ROWS)
    with open(tmp_path / 'report.csv', newline='') as file:
        first, failed = csv.DictReader(file)
    assert first == {
        'name': 'float', 'bits': 'float', 'seed': '', 'metrics.mAP': '0.5',
        'metrics.mAP_50': '0.75', 'cost.bytes': '8', 'error': ''
    }
    assert failed['error'] == ROWS[1]['error'] and failed['seed'] == '3'
    assert failed['metrics.mAP'] == ''


def test_markdown_lists_failed_rows_and_pictures(tmp_path):
    path = tmp_path / 'report.md'
    write_markdown(str(path), ROWS, {'A picture': 'map.png'})
    text = path.read_text(encoding='utf-8')
    assert '| float |' in text
    assert '- lcq, 4/4, seed 3: RuntimeError: it, "broke"\n' in text
    assert '![A picture](map.png)' in text
    write_markdown(str(path), ROWS[:1], {})
    assert 'Failed' not in path.read_text(encoding='utf-8')


def test_failed_row_without_a_seed_names_none(tmp_path):
    failed = dict(ROWS[1], name='lcq, calibrated', seed=None)
    write_markdown(str(tmp_path / 'report.md'), [ROWS[0], failed], {})
    assert '- lcq, calibrated, 4/4: Runtime' in (
        tmp_path / 'report.md').read_text(encoding='utf-8')
