from unittest.mock import Mock

import pytest
from mmengine.config import Config
from torch import nn

from lcq_mmdet import LCQError, convert_
from lcq_mmdet.report.runs import average_precision, bits_text, load_run


@pytest.fixture
def work_dir(tiny_config, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    tiny_config.merge_from_dict(dict(launcher='pytorch', resume=True))
    tiny_config.dump(folder / 'tiny.py')
    # The run has moved since.
    (folder / 'last_checkpoint').write_text('run/epoch_2.pth')
    (folder / 'epoch_2.pth').touch()
    return folder


def test_run_is_opened_at_its_last_checkpoint(work_dir):
    cfg = load_run(str(work_dir))
    assert cfg.load_from == str(work_dir / 'epoch_2.pth') and not cfg.resume
    assert cfg.work_dir == str(work_dir)


def test_run_of_a_launcher_is_opened_without_one(work_dir):
    assert load_run(str(work_dir)).launcher == 'none'
    assert load_run(str(work_dir), 'slurm').launcher == 'slurm'


@pytest.mark.parametrize('missing, message', [
    ('tiny.py', 'there is no config in this work directory'),
    ('last_checkpoint', 'there is no checkpoint in this work directory'),
    ('epoch_2.pth', 'there is no checkpoint in this work directory'),
])
def test_run_that_is_not_trained_is_named(work_dir, missing, message):
    (work_dir / missing).unlink()
    with pytest.raises(LCQError, match=message) as info:
        load_run(str(work_dir))
    assert str(work_dir) in str(info.value)


def test_detector_that_finds_nothing_has_an_ap_of_0():
    found = average_precision(Mock(test=lambda: {}))
    assert found['mAP'] == 0 and set(found.values()) == {0.}


@pytest.mark.parametrize('overrides, expected', [
    ({}, '4/3'),
    ({'2': dict(init='mse')}, '4/3'),
    ({'*': dict(bits=2)}, '2/2'),
    ({'2': dict(bits=2), '3': dict(weight_bits=3)}, 'mixed 3.4/3.2'),
])
def test_bits_of_a_model_are_told(overrides, expected):
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(3)),
                          nn.Conv2d(3, 6, 3))
    cfg = Config(dict(model=dict(overrides=overrides)))
    assert bits_text(cfg, model) == 'float'
    convert_(model, modules=['*'], weight_bits=4, act_bits=3,
             first_layer_bits=5, overrides=overrides)
    assert bits_text(cfg, model) == expected
