"""What a layer alone loses, and the tool that proposes bits from it."""
import json
import re
from functools import partial
from pathlib import Path

import pytest
from mmengine.config import Config

from lcq_mmdet import LCQError, apply_lcq
from lcq_mmdet.studies import sensitivity as module
from lcq_mmdet.studies.assign import both_bits
from lcq_mmdet.studies.sensitivity import Sensitivity


@pytest.fixture
def config(tiny_config, float_checkpoint, tmp_path):
    """The tiny RetinaNet with three quantized layers."""
    cfg = apply_lcq(
        tiny_config, bits=4,
        modules=['backbone.conv1', 'backbone.layer1.0'])
    cfg.load_from = float_checkpoint
    cfg.default_hooks.lcq.num_batches = 1
    cfg.work_dir = str(tmp_path / 'sensitivity')
    return cfg


@pytest.fixture
def tool(config, tmp_path, call_tool):
    """Call tools/sensitivity.py with flags."""
    path = tmp_path / 'tiny.py'
    config.dump(path)
    return partial(call_tool, 'sensitivity.py', path)


def read(config, name):
    return json.loads(Path(config.work_dir, name).read_text())['rows']


def test_proposal_is_within_the_budget_and_is_written_as_a_config(
        tool, config, monkeypatch):
    flags = ('--bits', '2', '8', '--budget-bits', '4', '--num-batches', '1')
    assert tool(*flags) == (0, [])
    runs = read(config, 'report.json')
    assert [run['name'] for run in runs] == ['float', 'uniform bits',
                                             'proposal']
    assert [run['bits'] for run in runs] == ['float', '4/4', runs[2]['bits']]
    assert re.fullmatch(r'mixed \d\.\d/\d\.\d', runs[2]['bits'])
    uniform, proposal = (run['cost'] for run in runs[1:])
    assert proposal['macs'] == uniform['macs']
    for key in ('bytes', 'bops'):
        assert proposal[key] <= uniform[key]
    rows = read(config, 'layers.json')
    assert [(row['layer'], row['bits']) for row in rows] == [
        (f'backbone.{name}', bits) for bits in (2, 8)
        for name in ('conv1', 'layer1.0.conv1', 'layer1.0.conv2')
    ]
    proposed = {row['layer']: row for row in rows if row['proposed']}
    written = Config.fromfile(Path(config.work_dir, 'overrides.py'))
    assert written.model.overrides == runs[-1]['overrides'] == {
        name: both_bits(row['bits'])
        for name, row in proposed.items()
    }
    for name in ('report.md', 'layers.csv', 'layers.png'):
        assert Path(config.work_dir, name).stat().st_size

    # Repeated with another budget, no layer is measured again.
    monkeypatch.setattr(module._Opened, 'loss', None)
    flags = flags[:3] + ('--num-batches', '1', '--budget-mb')
    megabytes = runs[1]['cost']['bytes'] / 1e6
    assert tool(*flags, megabytes) == (0, [])
    assert [run['name'] for run in read(config, 'report.json')] == [
        'float', 'proposal']


@pytest.mark.parametrize('flags, message', [
    (('--budget-mb', '0.001'), r'is 0.001 MB, and the detector has [\d.]+ MB '
     'with 2 bits in all layers; allow more'),
    (('--budget-bits', '8'), 'nothing is to be chosen .* with 4 bits'),
])
def test_impossible_budget_is_told_before_anything_is_measured(
        tool, config, flags, message):
    code, error = tool('--bits', '2', '4', *flags)
    assert code == 2 and re.match(f'error: the budget: {message}', error[0])
    assert not Path(config.work_dir, 'values.json').exists()


def test_cost_of_a_width_is_known_without_calibration(config):
    sensitivity = Sensitivity(config, 'loss', 1)
    expected = sensitivity.evaluate('all', 3)['cost']
    assert sensitivity.cost(3, everywhere=False) == expected
    assert sensitivity.cost(3)['bytes'] < expected['bytes']


def test_what_was_measured_before_an_interruption_is_kept(config,
                                                          monkeypatch):
    whole = Sensitivity(config, 'loss', 1).layers(2)
    values = Path(config.work_dir, 'values.json')
    measured = json.loads(values.read_text())
    del measured['backbone.layer1.0.conv2 2']
    values.write_text(json.dumps(measured))
    calls = []
    loss = module._Opened.loss
    monkeypatch.setattr(module._Opened, 'loss',
                        lambda self: calls.append(1) or loss(self))
    assert Sensitivity(config, 'loss', 1).layers(2) == whole
    assert calls == [1]


def test_each_layer_is_quantized_alone(config, monkeypatch):
    seen = []

    def loss(self):
        seen.append([
            name for name, layer in self.layers.items()
            if not layer.weight_quantizer.bypass
            and not layer.act_quantizer.bypass
        ])
        return len(seen[-1]) + len(seen) / 8

    monkeypatch.setattr(module._Opened, 'loss', loss)
    sensitivity = Sensitivity(config, 'loss', 1)
    rows, rest = sensitivity.layers(3)
    names = [row['layer'] for row in rows]
    assert seen == [[names[0]], [], [names[1]], [names[2]]]
    assert [row['change'] for row in rows] == [.875, 1.125, 1.25]
    total = sensitivity.evaluate(
        'all', 3, {'*': dict(bits=3)})['cost']
    for key in ('bytes', 'bops'):
        assert total[key] == pytest.approx(
            rest[key] + sum(row[key] for row in rows))


def test_average_precision_that_falls_is_a_loss(config, monkeypatch):
    monkeypatch.setattr(module._Opened, 'average_precision',
                        lambda self: .5 - .25 * any(
                            not layer.act_quantizer.bypass
                            for layer in self.layers.values()))
    rows, _ = Sensitivity(config, 'mAP', 1).layers(2)
    assert {row['change'] for row in rows} == {.25}


def test_average_precision_is_that_of_the_evaluator(config):
    sensitivity = Sensitivity(config, 'mAP', 1)
    opened = module._Opened(sensitivity._config(8, {}), 1)
    opened.quantize_only([])
    metrics = sensitivity.evaluate('float')['metrics']
    assert opened.average_precision() == metrics['mAP']
    opened.runner.test_loop.evaluator.metrics.clear()
    with pytest.raises(LCQError, match='gives no bbox_mAP'):
        opened.average_precision()


def test_patterns_of_the_config_give_way_to_the_proposal(config):
    config.model.overrides = {
        'backbone.conv1': dict(weight_bits=8, init='mse'),
        'backbone.layer1': dict(bits=3)
    }
    sensitivity = Sensitivity(config, 'loss', 1)
    cfg = sensitivity._config(2, {'backbone.conv1': both_bits(4)})
    assert list(cfg.model.overrides.items()) == [
        ('backbone.layer1', dict(bits=3)),
        ('backbone.conv1', dict(weight_bits=4, init='mse', act_bits=4))
    ]
    layers = module._Opened(
        sensitivity._config(2, {'*': both_bits(2)}), 1).layers
    assert {layer.weight_quantizer.bits for layer in layers.values()} == {2}


@pytest.mark.parametrize('flags, message', [
    (('--bits', '1', '4'), '--bits=1: must be an integer from 2 to 8'),
    (('--budget-bits', '9'), '--budget-bits=9: must be'),
    (('--budget-mb', '0'), '--budget-mb=0: must be a positive number'),
    (('--budget-gbops', 'nan'), '--budget-gbops=nan: must be a positive'),
    (('--num-batches', '0'), 'num_batches=0: must be 1 or more'),
    (('missing.pth', ), "checkpoint='missing.pth': no such file"),
])
def test_bad_input_is_told_before_anything_is_measured(tool, config, flags,
                                                       message):
    code, error = tool(*flags)
    assert code == 2 and error[0].startswith(f'error: {message}')
    assert not Path(config.work_dir, 'values.json').exists()


def test_work_directory_of_another_criterion_is_refused(config):
    Sensitivity(config, 'loss', 1)
    with pytest.raises(LCQError, match="criterion was 'loss' and is 'mAP'"):
        Sensitivity(config, 'mAP', 1)
