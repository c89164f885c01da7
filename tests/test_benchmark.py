"""The benchmark tool: what it compares, in which order, and what it writes."""
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from exporting import make_config, make_model
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from lcq_mmdet import LCQQuantizer, QuantizerConfig, recompute
from lcq_mmdet.benchmark.kernels import contestants
from lcq_mmdet.benchmark.timing import interleaved_medians
from lcq_mmdet.benchmark.training import change_training_
from lcq_mmdet.export.engines import ENGINES, is_installed
from lcq_mmdet.report.tables import ratio_table

ROOT = Path(__file__).parents[1]


@pytest.fixture
def call(monkeypatch, capsys):

    def run(tool, *args):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        return capsys.readouterr().out

    return run


def test_functions_take_turns():
    calls = []
    times = interleaved_medians(
        {name: lambda name=name: calls.append(name)
         for name in 'ab'}, rounds=2, warmup=1)
    assert calls == ['a', 'b'] * 3
    assert times.keys() == {'a', 'b'} and min(times.values()) > 0


def test_time_is_the_median(monkeypatch):
    now = iter([0, 0, 1, 0, 2, 0, 7])
    monkeypatch.setattr('time.perf_counter', lambda: next(now))
    times = interleaved_medians({'a': lambda: None}, rounds=3, warmup=1)
    assert times == {'a': 2}


def test_ratios_are_to_the_first_of_the_case():
    rows = [
        dict(case='x', name='float', seconds=dict(step=0.2), peak_memory=4e6),
        dict(case='x', name='lcq', seconds=dict(step=0.3), peak_memory=5e6),
        dict(case='y', name='float', seconds=dict(step=0.1)),
        dict(case='y', name='lcq', seconds=dict(step=0.4)),
    ]
    lines = [
        re.split(r'\s*\|\s*', line.strip('| '))
        for line in ratio_table(rows, markdown=True).strip().splitlines()
    ]
    assert lines[0] == ['case', '', 'step, ms', 'peak memory, MB']
    assert [line[-2:] for line in lines[2:4]] == [['200', '4'],
                                                  ['300 (1.50x)',
                                                   '5 (1.25x)']]
    assert lines[5][-1] == '400 (4.00x)'


def test_average_precision_has_a_column_where_there_is_any():
    rows = [
        dict(case='x', name='float', seconds=dict(network=0.2)),
        dict(case='x', name='lcq', seconds=dict(network=0.1),
             metrics=dict(mAP=0.25)),
    ]
    heading, _, first, second = [
        re.split(r'\s*\|\s*', line.strip()[1:-1].strip(' '))
        for line in ratio_table(rows, markdown=True).strip().splitlines()
    ]
    assert (heading[-1], first[-1], second[-1]) == ('AP', '', '0.250')


def test_kernels_are_compared_with_those_of_torch(call, tmp_path,
                                                  monkeypatch):
    # Compiling takes most of the time.
    monkeypatch.setattr(torch, 'compile', lambda function: function)
    out = tmp_path / 'kernels.json'
    output = call('benchmark.py', 'kernels', '--size', 2**12, '--rounds', 1,
                  '--dtype', 'bfloat16', '--out', out)
    record = json.loads(out.read_text())
    names = [row['name'] for row in record['rows']]
    assert names[:len(names) // 2] == names[len(names) // 2:] == [
        "torch's learnable fake quantizer", 'LCQ', 'LCQ, reference',
        'LCQ, reference, torch.compile', 'a copy of the same bytes'
    ]
    for row in record['rows']:
        assert row['seconds'].keys() == {'forward', 'backward', 'both'}
        assert min(row['seconds'].values()) > 0
        assert row['case'].endswith(', 4 bits, bfloat16')
    copy = record['rows'][4]
    assert set(copy['copy_share'].values()) == {1.}
    assert record['commit'] and str(out) in output
    assert "% of a copy's bandwidth" in output and '100, 100, 100' in output


@pytest.mark.parametrize('is_weight', [False, True])
def test_kernels_have_the_same_levels_and_gradients(is_weight):
    config = QuantizerConfig(weight_bits=3, act_bits=3)
    quantizer = LCQQuantizer(config, is_weight)
    x = torch.randn(64, 4, 3, 3) * 0.02
    x = x if is_weight else x.relu()
    quantizer.initialize_(x, signed=is_weight)
    # Then the levels are uniform.
    torch.nn.init.zeros_(quantizer.theta)
    if is_weight:
        # With 0 among them, as torch's whole zero point demands.
        torch.nn.init.constant_(quantizer.offset, -3 / 7 * quantizer.clip)
    found = {}
    for name, (function, parameters) in contestants(quantizer, x).items():
        if name.endswith('torch.compile'):
            continue
        y = function(x)
        grads = torch.autograd.grad(y.square().sum(), parameters)
        assert all(grad.abs().sum() > 0 for grad in grads)
        found[name] = y, len(grads)
    (ours, count), (same, also), (native, others) = (
        found[name] for name in ('LCQ', 'LCQ, reference',
                                 "torch's learnable fake quantizer"))
    assert count == also == others + 1 == (3 if is_weight else 2)
    # In units of the deviation, sums differ in the last place.
    torch.testing.assert_close(ours, same)
    levels = [y.detach().unique(dim=None) for y in (ours, native)]
    step = quantizer.scale(x).item() * quantizer.clip.item() / 7
    gaps = [(level.diff() > step / 2).sum() + 1 for level in levels]
    assert gaps == [8, 8]
    assert ((ours - native).abs() < step / 100).float().mean() > 0.99


@pytest.mark.parametrize('flags, message', [
    (['--amp'], 'error: --amp: mixed precision needs a GPU'),
    (['--size', '32', '48', '--cfg-options',
      'train_dataloader.dataset.pipeline=[]'], 'error: --size 32 48: there '),
])
def test_what_a_step_cannot_be_made_of_is_told(flags, message, call_tool,
                                               tiny_config, tmp_path,
                                               monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    tiny_config.dump(tmp_path / 'tiny.py')
    code, lines = call_tool('benchmark.py', 'train', tmp_path / 'tiny.py',
                            *flags)
    assert code == 2 and lines[0].startswith(message)


def test_step_is_made_of_the_images_asked_for(tiny_config):
    change_training_(tiny_config, (32, 48), 4)
    init_default_scope('mmdet')
    loader = Runner.build_dataloader(tiny_config.train_dataloader, seed=0)
    images = next(iter(loader))['inputs']
    assert [tuple(image.shape) for image in images] == [(3, 32, 48)] * 4


def test_training_is_compared_with_float(call, tiny_config, tmp_path,
                                         monkeypatch):
    monkeypatch.setattr(recompute, 'MIN_SIZE', 0)
    path, out = tmp_path / 'tiny.py', tmp_path / 'train.json'
    tiny_config.train_dataloader.batch_size = 2
    # It would have to be downloaded, and is left out.
    tiny_config.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint='torchvision://resnet18')
    tiny_config.dump(path)
    call('benchmark.py', 'train', path, '--bits', 2, '--rounds', 1, '--out',
         out, '--modules', 'backbone', 'bbox_head', '--without-recomputation')
    rows = json.loads(out.read_text())['rows']
    memory = {row['name']: row['peak_memory'] for row in rows[:4]}
    assert list(memory) == [
        'float', 'uniform', 'lcq', 'lcq, without recomputation']
    assert memory['lcq, without recomputation'] > 1.1 * memory['lcq']
    assert recompute.MIN_SIZE == 0
    assert [row['case'] for row in rows] == ['tiny, 2 bits'] * 4 + [
        'tiny, 2 bits, calibration'
    ] * 3
    assert all(row['seconds']['step'] > 0 for row in rows)


INSTALLED = [name for name in ENGINES if is_installed(name)]
_KINDS = ['in float', 'in 8 bits, exact', 'in 8 bits, relaxed']


def contestants_of(engines):
    titles = [dict(openvino='OpenVINO').get(name, name) for name in engines]
    networks = [f'{title}, float' for title in titles]
    if 'onnxruntime' in engines:
        networks.insert(1, 'onnxruntime, its own static 8-bit quantization')
    return [
        'torch, float', *networks, 'torch, LCQ',
        *(f'{title}, LCQ {kind}' for title in titles for kind in _KINDS)
    ]


def test_engines_run_the_same_network(call, tiny_config, tmp_path):
    path, out = tmp_path / 'tiny.py', tmp_path / 'inference.json'
    tiny_config.dump(path)
    output = call('benchmark.py', 'inference', path, '--size', 64, 96,
                  '--rounds', 1, '--out', out)
    rows = json.loads(out.read_text())['rows']
    assert [row['name'] for row in rows] == contestants_of(INSTALLED)
    assert all(row['seconds']['network'] > 0 for row in rows)
    sizes = [row['file_bytes'] for row in rows[1:]]
    assert max(sizes) == sizes[0] and min(sizes) > 0
    assert 'tiny, 4 bits, 64 x 96' in output and 'file, MB' in output
    assert 'init_weights' not in output and ' AP ' not in output
    assert not any('metrics' in row for row in rows)


def test_trained_detectors_are_evaluated(call, toy_coco, tmp_path):
    work_dir, out = tmp_path / 'moved', tmp_path / 'inference.json'
    work_dir.mkdir()
    cfg = make_config('FasterRCNN', root=toy_coco)
    cfg.dump(work_dir / 'config.py')
    torch.save(dict(state_dict=make_model(cfg).state_dict(), meta={}),
               work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text('/elsewhere/epoch_1.pth')
    output = call('benchmark.py', 'inference', '--run', 'Faster', work_dir,
                  '--size', 64, 64, '--rounds', 1, '--engine', 'onnxruntime',
                  '--out', out)
    record = json.loads(out.read_text())['rows']
    whole = [row for row in record if row['case'].endswith('to boxes')]
    check_whole_path(whole)
    rows = {row['name']: row for row in record if row not in whole}
    assert list(rows) == contestants_of(['onnxruntime'])
    for name, row in rows.items():
        assert row['case'] == 'Faster, 64 x 64'
        assert ('metrics' in row) == ('LCQ' in name)
    assert (rows['torch, LCQ']['metrics']['mAP'] ==
            rows['onnxruntime, LCQ in float']['metrics']['mAP'] >= 0)
    assert ' AP' in output


def check_whole_path(rows):
    """Boxes of each graph are those of mmdet, or were in 8 bits."""
    assert {row['case'] for row in rows} == {'Faster, images to boxes'}
    assert [row['name'] for row in rows] == [
        'torch, float', 'torch, LCQ',
        *(f'onnxruntime, LCQ {kind}' for kind in _KINDS),
        'onnxruntime, LCQ in 8 bits, relaxed, other layers in float'
    ]
    assert all(row['seconds']['images to boxes'] > 0 for row in rows)
    assert ['metrics' in row for row in rows] == [False] + 5 * [True]
    assert ['file_bytes' in row for row in rows] == 2 * [False] + 4 * [True]
    assert rows[1]['metrics'] == rows[2]['metrics']


def test_missing_engine_is_told(call, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(SystemExit):
        call('benchmark.py', 'inference', 'mmdet::x.py', '--engine',
             'openvino')
    assert "pip install 'lcq_mmdet[openvino]'" in capsys.readouterr().err


def test_nothing_to_run_is_told(call, capsys):
    with pytest.raises(SystemExit):
        call('benchmark.py', 'inference')
    assert '--run' in capsys.readouterr().err


def test_levels_above_an_offset_fit_small_negative_parts(call, tmp_path):
    out = tmp_path / 'activations.json'
    output = call('benchmark.py', 'activations', '--out', out)
    rows = json.loads(out.read_text())['rows']
    assert len(rows) == 12
    for offset, symmetric in zip(rows[::2], rows[1::2]):
        assert offset['case'] == symmetric['case']
        assert (offset['name'], symmetric['name']) == ('offset', 'symmetric')
        assert offset['relative_error'] < 0.5 * symmetric['relative_error']
    assert 'GELU, 2 bits' in output


def test_float_run_is_refused(call, tiny_config, tmp_path, capsys):
    tiny_config.dump(tmp_path / 'config.py')
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    (tmp_path / 'epoch_1.pth').touch()
    with pytest.raises(SystemExit):
        call('benchmark.py', 'inference', '--run', 'tiny', tmp_path)
    assert "--run='tiny': " in capsys.readouterr().err


def test_unknown_config_is_told_in_one_line(call, capsys):
    with pytest.raises(SystemExit):
        call('benchmark.py', 'train', 'none.py')
    assert capsys.readouterr().err == "error: config='none.py': no such file\n"


def test_tables_are_those_of_the_benchmarks(call):
    call('write_tables.py', '--check', ROOT / 'README.md',
         ROOT / 'benchmarks' / 'README.md', *(ROOT / 'docs').glob('*.md'))
