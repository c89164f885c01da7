"""The shell scripts, with a python and a srun that print their arguments."""
import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / 'tools'


def run(script, *arguments, folder, **environment):
    for name in ('python', 'srun'):
        fake = folder / name
        fake.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
        fake.chmod(0o755)
    return subprocess.run(
        [str(TOOLS / script), *arguments], capture_output=True, text=True,
        env=dict(os.environ, PATH=f'{folder}:{os.environ["PATH"]}',
                 **environment))


def test_training_starts_on_several_gpus(tmp_path):
    found = run('dist_train.sh', 'my config.py', '2', '--bits', '4', '--amp',
                folder=tmp_path, PORT='29501').stdout.splitlines()
    assert found == [
        '-m', 'torch.distributed.run', '--nnodes=1', '--node-rank=0',
        '--nproc-per-node=2', '--master-addr=127.0.0.1', '--master-port=29501',
        f'{TOOLS}/train.py', 'my config.py', '--launcher', 'pytorch', '--bits',
        '4', '--amp'
    ]


def test_evaluation_starts_on_several_machines(tmp_path):
    found = run('dist_test.sh', 'a.py', 'b.pth', '8', '--tta', folder=tmp_path,
                NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1')
    assert found.stdout.splitlines() == [
        '-m', 'torch.distributed.run', '--nnodes=2', '--node-rank=1',
        '--nproc-per-node=8', '--master-addr=10.0.0.1', '--master-port=29500',
        f'{TOOLS}/test.py', 'a.py', 'b.pth', '--launcher', 'pytorch', '--tta'
    ]


def test_training_starts_under_slurm(tmp_path):
    found = run('slurm_train.sh', 'gpu', 'job', 'a.py', 'work', '--bits', '2',
                folder=tmp_path, GPUS='16', SRUN_ARGS='--mem=1G --time=9')
    assert found.stdout.splitlines() == [
        '--partition=gpu', '--job-name=job', '--ntasks=16',
        '--ntasks-per-node=8', '--gres=gpu:8', '--cpus-per-task=5',
        '--kill-on-bad-exit=1', '--mem=1G', '--time=9', 'python', '-u',
        f'{TOOLS}/train.py', 'a.py', '--work-dir', 'work', '--launcher',
        'slurm', '--bits', '2'
    ]


@pytest.mark.parametrize('script, missing', [
    ('dist_train.sh', 'CONFIG'), ('dist_test.sh', 'CONFIG'),
    ('slurm_train.sh', 'PARTITION')])
def test_missing_argument_is_named(script, missing, tmp_path):
    result = run(script, folder=tmp_path)
    assert result.returncode and f'{missing} is missing' in result.stderr
