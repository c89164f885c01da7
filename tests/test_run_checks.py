"""What is checked of a training as a whole."""
import subprocess
import sys
from importlib.util import find_spec

import pytest
from mmengine.config import Config
from training import make_config

from lcq_mmdet import LCQError
from lcq_mmdet.cli import (build_runner, check_training, read_config,
                           sole_process)

HOLD = '''
import fcntl, sys
file = open(sys.argv[1], 'w')
fcntl.flock(file, fcntl.LOCK_EX)
print('locked', flush=True)
sys.stdin.read()
'''


def test_second_training_in_a_work_directory_is_kept_out(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path / 'run')))
    with sole_process(cfg, 'training'):
        pass
    other = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path / 'run/.training')],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == 'locked\n'
    with pytest.raises(LCQError, match="run': another training runs in it"):
        with sole_process(cfg, 'training'):
            pass
    # The lock of a training that was killed is no hindrance.
    other.kill()
    other.communicate()
    with sole_process(cfg, 'training'):
        pass


def test_other_processes_of_a_launcher_train_along(tmp_path, monkeypatch):
    cfg = Config(dict(work_dir=str(tmp_path), launcher='pytorch'))
    monkeypatch.setenv('RANK', '0')
    with sole_process(cfg, 'training'):
        monkeypatch.setenv('RANK', '1')
        with sole_process(cfg, 'training'):
            pass


def test_mixed_precision_without_a_gpu_is_refused(monkeypatch):
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper')))
    monkeypatch.setattr('lcq_mmdet.cli.checks.runs.get_device', lambda: 'cpu')
    with pytest.raises(LCQError, match='needs a GPU, and there is none'):
        check_training(cfg)
    monkeypatch.setattr('lcq_mmdet.cli.checks.runs.get_device',
                        lambda: 'cuda')
    check_training(cfg)


@pytest.mark.parametrize('text', [
    "custom_imports = dict(imports=['no_such_package'], "
    'allow_failed_imports=False)',
    "_base_ = 'base.py'"
], ids=['named', 'by its base'])
def test_package_that_a_config_needs_is_named(tmp_path, text):
    (tmp_path / 'base.py').write_text(
        "custom_imports = dict(imports=['no_such_package'], "
        'allow_failed_imports=False)')
    (tmp_path / 'a.py').write_text(text)
    with pytest.raises(LCQError) as info:
        read_config(str(tmp_path / 'a.py'))
    error = str(info.value)
    assert error.startswith(f"config='{tmp_path}/a.py': needs a package")
    assert 'no_such_package' in error and '\n' not in error


def test_name_that_no_package_has_is_named():
    with pytest.raises(LCQError, match=r"^config='mmdet::no/such\.py': "):
        read_config('mmdet::no/such.py')


@pytest.mark.skipif(find_spec('mmpretrain') is not None, reason='is there')
def test_published_config_names_the_package_once():
    with pytest.raises(LCQError) as info:
        read_config('mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-'
                    'ms-crop-3x_coco.py')
    error = str(info.value)
    assert error.count('config=') == 1 and 'mmpretrain' in error


def test_hooks_are_one_line_of_the_log(tmp_path):
    runner = build_runner(make_config(tmp_path))
    # Asked directly: a logger of these levels would outlive the test.
    runner.cfg.log_level = 'INFO'
    line = runner.get_hooks_info()
    assert 'CheckpointHook' in line and ', LCQHook' in line
    assert '\n' not in line
    runner.cfg.log_level = 'DEBUG'
    assert 'before_train:\n' in runner.get_hooks_info()
