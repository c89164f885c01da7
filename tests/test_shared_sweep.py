"""A sweep that several processes work on."""
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcq_mmdet.report.files import held
from lcq_mmdet.studies import sweep as module
from lcq_mmdet.studies.outcomes import Outcomes
from lcq_mmdet.studies.rows import plan
from lcq_mmdet.studies.sweep import Sweep

ROOT = Path(__file__).parents[1]
ROWS = plan([(4, 4), (2, 2)], ['lcq'], [0, 1])
fork = multiprocessing.get_context('fork')


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A file with a line for each row that any process ran, and a result
    that is made up. The first process that runs ``measured.stuck`` does not
    come to an end, and ``measured.failing`` fails."""

    class Log:
        stuck = failing = None

        def lines(self):
            path = tmp_path / 'measured'
            return path.read_text().split('\n')[:-1] if path.exists() else []

        def folders(self):
            return [line.split()[0] for line in self.lines()]

    log = Log()

    def measure(self, row):
        with open(tmp_path / 'measured', 'a') as file:
            file.write(f'{row.folder} {os.getpid()}\n')
        if row.folder == log.failing:
            raise RuntimeError('diverged')
        if row.folder == log.stuck and log.folders().count(row.folder) == 1:
            time.sleep(60)
        time.sleep(0.1)
        return dict(metrics=dict(mAP=0.5), cost=dict(bytes=8, bops=1.))

    monkeypatch.setattr(Sweep, '_measure', measure)
    monkeypatch.setattr(module, '_PAUSE', 0.05)
    return log


def run(cfg, rows=ROWS, **options):
    return list(Sweep(cfg, rows, cfg.work_dir, **options).run())[-1]


def run_and_note(cfg, path, options):
    path.write_text(json.dumps(run(cfg, **options)))


def start(cfg, path, **options):
    process = fork.Process(target=run_and_note, args=(cfg, path, options))
    process.start()
    return process


def wait_until(condition, process):
    for _ in range(200):
        if condition():
            return
        assert process.exitcode in (None, 0)
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.parametrize('progressive', [False, True])
def test_each_row_is_run_by_one_of_the_processes(sweep_config, measured,
                                                 tmp_path, progressive):
    processes = [start(sweep_config, tmp_path / f'{i}.json',
                       progressive=progressive) for i in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    folders = measured.folders()
    assert sorted(folders) == sorted(row.folder for row in ROWS)
    assert len({line.split()[1] for line in measured.lines()}) == 2
    first, second = (json.loads((tmp_path / f'{i}.json').read_text())
                     for i in range(2))
    assert first == second and len(first) == len(ROWS)
    assert not list(tmp_path.rglob('*.tmp'))
    if progressive:
        for seed in '01':
            assert folders.index(f'lcq_w4a4_seed{seed}') < folders.index(
                f'lcq_w2a2_seed{seed}')


def test_row_of_a_killed_process_is_taken_over(sweep_config, measured,
                                               tmp_path):
    measured.stuck = 'lcq_w4a4_seed0'
    killed = start(sweep_config, tmp_path / 'killed.json')
    wait_until(lambda: measured.stuck in measured.folders(), killed)
    other = start(sweep_config, tmp_path / 'other.json')
    wait_until(lambda: len(measured.lines()) == len(ROWS), other)
    time.sleep(0.5)
    # It waits for the row, and does not run it as well.
    assert other.is_alive() and len(measured.lines()) == len(ROWS)
    killed.kill()
    killed.join()
    other.join(60)
    assert other.exitcode == 0
    assert measured.folders()[-1] == measured.stuck
    assert len(measured.lines()) == len(ROWS) + 1
    records = json.loads((tmp_path / 'other.json').read_text())
    assert len(records) == len(ROWS)
    assert not any('error' in record for record in records)


def test_failed_row_is_not_tried_again_by_each_process(sweep_config, measured):
    measured.failing = 'lcq_w4a4_seed0'
    sweeps = [Sweep(sweep_config, ROWS, sweep_config.work_dir)
              for _ in range(2)]
    first, second = (list(sweep.run())[-1] for sweep in sweeps)
    assert first == second and first[2]['error'] == 'RuntimeError: diverged'
    assert measured.folders() == [row.folder for row in ROWS]
    # But by a command that is repeated, and then it is forgotten.
    measured.failing = None
    assert 'error' not in run(sweep_config)[2]
    assert measured.folders()[len(ROWS):] == ['lcq_w4a4_seed0']
    assert not list(Path(sweep_config.work_dir).rglob('failed.json'))


def test_row_that_failed_before_may_be_mended_by_another(tmp_path):
    """Its failure is removed while this process looks for a result."""
    folder = str(tmp_path)
    (tmp_path / 'failed.json').write_text('{"time": 1, "record": {}}')
    outcomes = Outcomes([folder])
    assert outcomes.read(folder) is None
    (tmp_path / 'failed.json').unlink()
    assert outcomes.read(folder) is None


def test_rows_that_start_from_one_elsewhere_wait(sweep_config, measured,
                                                 monkeypatch):
    sweep = Sweep(sweep_config, ROWS, sweep_config.work_dir, progressive=True)
    monkeypatch.setattr(module.time, 'sleep', lambda seconds: 1 / 0 if (
        seconds == module._PAUSE) else None)
    path = sweep.path(ROWS[2])
    with held(f'{path}/.row'):
        with pytest.raises(ZeroDivisionError):
            list(sweep.run())
    assert measured.folders() == [
        row.folder for row in ROWS if 'seed0' not in row.folder]
    assert sweep.is_shared


def test_report_is_not_written_before_the_float_detector_is_known(
        sweep_config, measured, monkeypatch):
    sweep = Sweep(sweep_config, ROWS, sweep_config.work_dir)
    with held(f'{sweep.path(ROWS[0])}/.row'):
        monkeypatch.setattr(module.time, 'sleep', lambda seconds: 1 / 0 if (
            seconds == module._PAUSE) else None)
        with pytest.raises(ZeroDivisionError):
            next(sweep.run())
    assert len(measured.folders()) == len(ROWS) - 1
    assert next(sweep.run())[0]['name'] == 'float'


@pytest.mark.slow
def test_tool_goes_on_where_a_killed_one_was(sweep_config, tmp_path):
    sweep_config.merge_from_dict({
        f'{split}_dataloader.num_workers': 0
        for split in ('train', 'val', 'test')})
    sweep_config.log_level = 'INFO'
    sweep_config.dump(tmp_path / 'tiny.py')

    def begin():
        return subprocess.Popen(
            [sys.executable, str(ROOT / 'tools/sweep.py'), 'tiny.py',
             '--bits', '4', 'w2a8', '--no-train'], cwd=tmp_path,
            env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    killed, other = begin(), begin()
    for line in killed.stdout:
        if 'LCQ sweep: row' in line:
            break
    killed.kill()
    killed.communicate()
    output, _ = other.communicate(timeout=600)
    assert other.returncode == 0, output[-3000:]
    folder = tmp_path / 'sweep'
    rows = json.loads((folder / 'report.json').read_text())['rows']
    assert [(row['name'], row['bits']) for row in rows] == [
        ('float', 'float'), ('lcq, calibrated', '4/4'),
        ('lcq, calibrated', '2/8')]
    assert 'map.png' in (folder / 'report.md').read_text()
    assert (folder / 'map.png').stat().st_size > 1000
    assert not any('error' in row for row in rows)
