"""The sweep without its trainings: which rows, in what order, and when."""
import os
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from lcq_cli.parsers.sweep import parse_bits
from lcq_mmdet import LCQError, apply_lcq
from lcq_mmdet.report.tables import map_table
from lcq_mmdet.studies import measuring
from lcq_mmdet.studies import sweep as module
from lcq_mmdet.studies.rows import Row, pair_bits, plan
from lcq_mmdet.studies.start import check_float
from lcq_mmdet.studies.sweep import Sweep

needs_full = pytest.mark.skipif(
    not os.path.exists('/dev/full'), reason='needs a device that is full')
ROWS = plan([(4, 4), (2, 2)], ['lcq'], [0])


@pytest.mark.parametrize('bits, weight, act, pairs', [
    ([32, 2, 8, 2], None, None, [(8, 8), (2, 2)]),
    ([32], None, None, []),
    (None, [2, 4], [8, 4], [(4, 4), (2, 8)]),
    (None, [4], [2, 8], [(4, 8), (4, 2)]),
    (None, [2, 3], [4], [(3, 4), (2, 4)]),
    ([4], [4], [4], [(4, 4)]),
    ([2, (4, 8), (2, 8), 4, 32], None, None,
     [(4, 8), (4, 4), (2, 8), (2, 2)]),
])
def test_bits_are_paired_from_the_highest_down(bits, weight, act, pairs):
    assert pair_bits(bits, weight, act) == pairs


@pytest.mark.parametrize('value', [-1, 0, 1, 9, 16, 31, 33])
def test_bits_are_2_to_8_or_32(value):
    with pytest.raises(LCQError, match=f'^bits={value}: must be an integer '
                       'from 2 to 8, or 32 for float$'):
        pair_bits([4, value], None, None)
    for key in ('weight_bits', 'act_bits'):
        lists = {'weight_bits': [4], 'act_bits': [4], key: [value]}
        with pytest.raises(LCQError, match=f'^{key}={value}: must be'):
            pair_bits(None, **lists)


def test_bits_of_weights_and_inputs_are_given_apart():
    assert [parse_bits(t) for t in ('4', 'w4a8', 'W2A8', '32')] == [
        4, (4, 8), (2, 8), 32]
    for text in ('w4', 'a8', '4a8', 'four', '-4', 'w4a8 ', ''):
        with pytest.raises(ArgumentTypeError, match='such as w4a8'):
            parse_bits(text)
    for pair, message in (((4, 9), 'bits=w4a9: act_bits=9: must be'),
                          ((32, 8), 'bits=w32a8: weight_bits=32: must be')):
        with pytest.raises(LCQError, match=message):
            pair_bits([pair], None, None)


def test_plan_is_the_float_row_and_each_width_without_and_with_training():
    rows = plan([(4, 2)], ['lcq', 'uniform'], [0, 7, 0])
    assert [(row.folder, row.name, row.bits_text) for row in rows] == [
        ('float', 'float', 'float'),
        ('lcq_w4a2_calibrated', 'lcq, calibrated', '4/2'),
        ('lcq_w4a2_seed0', 'lcq, fine-tuned', '4/2'),
        ('lcq_w4a2_seed7', 'lcq, fine-tuned', '4/2'),
        ('uniform_w4a2_calibrated', 'uniform, calibrated', '4/2'),
        ('uniform_w4a2_seed0', 'uniform, fine-tuned', '4/2'),
        ('uniform_w4a2_seed7', 'uniform, fine-tuned', '4/2'),
    ]
    assert plan([(4, 4)], ['lcq'], []) == [Row(), Row('lcq', (4, 4))]


def test_float_control_is_trained_with_each_seed():
    rows = plan([(4, 4)], ['lcq'], [0, 7], float_control=True)
    assert [(row.folder, row.name, row.bits_text) for row in rows[:3]] == [
        ('float', 'float', 'float'),
        ('float_seed0', 'float, fine-tuned', 'float'),
        ('float_seed7', 'float, fine-tuned', 'float'),
    ]
    assert rows[3:] == plan([(4, 4)], ['lcq'], [0, 7])[1:]
    assert [row.is_start for row in rows] == [True] + [False] * 5


def test_float_control_starts_from_the_float_detector(sweep_config):
    sweep_config.default_hooks.pop('lcq', None)
    quantized = apply_lcq(sweep_config, bits=4)
    quantized.train_cfg.max_epochs = 9
    rows = plan([(4, 4)], ['lcq'], [3], float_control=True)
    sweep = Sweep(quantized, rows, quantized.work_dir, progressive=True)
    cfg = sweep.row_config(rows[1])
    assert cfg.model.type == 'RetinaNet' and 'lcq' not in cfg.default_hooks
    assert cfg.load_from == sweep_config.load_from
    assert cfg.train_cfg.max_epochs == 9 and cfg.randomness.seed == 3


def test_float_control_that_fails_stops_nothing(sweep_config, measured):
    rows = plan([(4, 4)], ['lcq'], [0], float_control=True)
    measured.errors['float_seed0'] = RuntimeError('diverged')
    records = run(sweep_config, rows)
    assert ['error' in record for record in records] == [
        False, True, False, False]
    assert records[1]['error'] == 'RuntimeError: diverged'


def test_rows_that_differ_have_folders_and_labels_that_differ():
    rows = plan([(8, 8), (8, 2), (2, 8)], ['lcq', 'uniform'], [0, 1, 12])
    assert len({row.folder for row in rows}) == len(rows) == 25
    assert len({str(row.label()) for row in rows}) == len(rows)
    assert rows[2].label() == dict(
        name='lcq, fine-tuned', bits='8/8', variant='lcq', weight_bits=8,
        act_bits=8, fine_tuned=True, seed=0)


@pytest.fixture
def measured(monkeypatch):
    """Folders of the rows that ran, each with a result made up; a test may
    put errors into ``measured.errors`` by folder."""

    class Folders(list):
        pass

    folders = Folders()
    folders.errors = {}

    def measure(self, row):
        folders.append(row.folder)
        if row.folder in folders.errors:
            raise folders.errors[row.folder]
        return dict(metrics=dict(mAP=0.5), cost=dict(bytes=8, bops=1.),
                    name='to be replaced')

    monkeypatch.setattr(Sweep, '_measure', measure)
    return folders


def run(cfg, rows=ROWS, **options):
    return list(Sweep(cfg, rows, cfg.work_dir, **options).run())[-1]


def test_rows_that_are_done_are_not_run_again(sweep_config, measured):
    records = run(sweep_config)
    assert [record['name'] for record in records] == [
        'float', 'lcq, calibrated', 'lcq, fine-tuned', 'lcq, calibrated',
        'lcq, fine-tuned'
    ]
    del measured[:]
    assert run(sweep_config) == records and not measured

    more = plan([(4, 4), (3, 3), (2, 2)], ['lcq'], [0, 1])
    assert len(run(sweep_config, more)) == 10
    assert measured == [
        'lcq_w4a4_seed1', 'lcq_w3a3_calibrated', 'lcq_w3a3_seed0',
        'lcq_w3a3_seed1', 'lcq_w2a2_seed1'
    ]


def test_failed_row_is_run_again_and_the_others_are_not(sweep_config,
                                                        measured):
    measured.errors['lcq_w4a4_seed0'] = RuntimeError('one\ntwo')
    records = run(sweep_config)
    assert records[2]['error'] == 'RuntimeError: one'
    assert records[2]['name'] == 'lcq, fine-tuned'
    assert len(measured) == 5 and 'error' not in records[4]
    measured.errors.clear()
    del measured[:]
    assert 'error' not in run(sweep_config)[2]
    assert measured == ['lcq_w4a4_seed0']


def test_sweep_without_its_float_row_stops(sweep_config, measured):
    measured.errors['float'] = RuntimeError('no data')
    with pytest.raises(RuntimeError, match='no data'):
        run(sweep_config)
    assert measured == ['float']


def test_progressive_row_waits_for_the_one_it_starts_from(sweep_config,
                                                          measured):
    sweep_config.default_hooks.lcq_distill = dict(type='LCQDistillHook')
    sweep = Sweep(sweep_config, ROWS, sweep_config.work_dir, progressive=True)
    first, second = ROWS[2], ROWS[4]
    assert sweep.row_config(first).load_from == sweep_config.load_from
    assert sweep.row_config(ROWS[3]).load_from == sweep_config.load_from
    with pytest.raises(LCQError, match='from lcq_w4a4_seed0, which failed'):
        sweep.row_config(second)
    list(sweep.run())
    folder = Path(sweep.path(first))
    with pytest.raises(LCQError, match='which has no checkpoint any more'):
        sweep.row_config(second)
    # The sweep has moved since.
    (folder / 'last_checkpoint').write_text('x/epoch_2.pth')
    (folder / 'epoch_2.pth').touch()
    cfg = sweep.row_config(second)
    assert cfg.load_from == str(folder / 'epoch_2.pth')
    # Clips and companders come along, as in the recorded results.
    assert cfg.default_hooks.lcq.keep_quantizers
    assert cfg.default_hooks.lcq_distill.teacher == sweep_config.load_from
    assert 'keep_quantizers' not in sweep.row_config(first).default_hooks.lcq


def test_row_of_mixed_bits_is_called_so(sweep_config, measured):
    mixed = {'model.overrides': {'neck': dict(bits=8)}}
    variants = dict(lcq={}, mixed=mixed, other={'model.overrides': {
        'neck': dict(init='mse')}})
    rows = plan([(4, 4), (3, 3)], variants, [0, 1])
    measured.errors['mixed_w3a3_seed1'] = RuntimeError('diverged')
    records = run(sweep_config, rows, variants=variants)
    texts = {(record['variant'], row.bits[0]): record['bits']
             for row, record in zip(rows, records)}
    assert texts == {
        ('float', 32): 'float', ('lcq', 4): '4/4', ('lcq', 3): '3/3',
        ('mixed', 4): 'mixed 4.4/5.3', ('mixed', 3): 'mixed 3.5/4.6',
        ('other', 4): '4/4', ('other', 3): '3/3'
    }
    for row, record in zip(rows, records):
        if row.variant == 'mixed':
            assert f'mixed {record["weight_bits"]:.1f}/' in record['bits']
    # The seed that failed is in the line of the others.
    table = map_table(records)
    assert '1 of 2' in table and table.count('mixed, fine-tuned') == 2


def test_row_runs_with_its_bits_and_seed(sweep_config, tmp_path):
    quantized = apply_lcq(sweep_config, bits=8, exclude=['neck'])
    for cfg in (sweep_config, quantized):
        cfg.work_dir = str(tmp_path / cfg.model.type)
        sweep = Sweep(cfg, ROWS, cfg.work_dir)
        float_row = sweep.row_config(Row())
        assert float_row.model.type == 'RetinaNet'
        assert float_row.work_dir == str(tmp_path / cfg.model.type / 'float')
        row = sweep.row_config(Row('uniform', (3, 4), 7))
        assert (row.model.weight_bits, row.model.act_bits) == (3, 4)
        assert row.model.quantizer == 'uniform'
        assert row.randomness.seed == 7
        assert row.work_dir.endswith('/uniform_w3a4_seed7')
        assert row.visualizer.name != float_row.visualizer.name
        assert cfg.randomness.seed == 0
    assert row.model.exclude == ['neck']


@pytest.mark.parametrize('change, message', [
    (lambda cfg: cfg.train_cfg.update(max_epochs=9),
     'train_cfg.max_epochs was 2 and is 9 now'),
    (lambda cfg: cfg.update(new=[1]), 'new was None and is .1. now'),
    (lambda cfg: cfg.pop('randomness'), 'randomness.seed was 0 and is None'),
    (lambda cfg: cfg.model.update(type='ATSS'), "model.type was 'RetinaNet'"),
])
def test_work_directory_of_another_config_is_refused(sweep_config, measured,
                                                     change, message):
    run(sweep_config, ROWS[:1])
    change(sweep_config)
    with pytest.raises(LCQError, match=message) as info:
        run(sweep_config)
    assert 'choose another directory' in str(info.value)
    assert '\n' not in str(info.value) and measured == ['float']


def test_work_directory_of_another_start_is_refused(sweep_config, measured,
                                                    tmp_path):
    checkpoint = tmp_path / 'float.pth'
    checkpoint.write_bytes(b'one')
    sweep_config.load_from = str(checkpoint)
    run(sweep_config, ROWS[:1])
    with pytest.raises(LCQError, match='progressive was False and is True'):
        run(sweep_config, progressive=True)
    checkpoint.write_bytes(b'other')
    with pytest.raises(LCQError, match='checkpoint_sha256 was'):
        run(sweep_config)


def test_work_directory_can_be_moved_and_run_by_another_launcher(
        sweep_config, measured, tmp_path):
    records = run(sweep_config)
    moved = tmp_path / 'moved'
    Path(sweep_config.work_dir).rename(moved)
    sweep_config.update(work_dir=str(moved), launcher='pytorch')
    del measured[:]
    assert run(sweep_config) == records and not measured


@needs_full
@pytest.mark.parametrize('file, kept', [('sweep.json', 0),
                                        ('lcq_w4a4_seed0/row.json', 2)])
def test_full_disk_stops_the_sweep_and_it_goes_on(sweep_config, measured,
                                                  file, kept):
    path = Path(sweep_config.work_dir, file)
    path.parent.mkdir(parents=True)
    Path(f'{path}.tmp').symlink_to('/dev/full')
    with pytest.raises(LCQError, match='No space left on device') as info:
        run(sweep_config)
    assert str(path) in str(info.value) and '\n' not in str(info.value)
    assert not path.exists()
    del measured[:]
    assert not any('error' in record for record in run(sweep_config))
    assert measured == [row.folder for row in ROWS[kept:]]


@pytest.fixture
def tool(sweep_config, tmp_path, call_tool):
    """Call tools/sweep.py with flags."""
    path = tmp_path / 'tiny.py'
    sweep_config.dump(path)
    return partial(call_tool, 'sweep.py', path)


@needs_full
@pytest.mark.parametrize('file', ['report.json.tmp', 'report.csv.tmp',
                                  'report.md.tmp', 'map.png'])
def test_full_disk_while_reporting_is_told_in_one_line(
        sweep_config, measured, tool, file):
    flags = ('--bits', '4', '--no-train')
    folder = Path(sweep_config.work_dir)
    folder.mkdir()
    (folder / file).symlink_to('/dev/full')
    code, error = tool(*flags)
    assert code == 2 and error[0].startswith('error: ')
    assert 'No space left on device' in error[0]
    (folder / file).unlink(missing_ok=True)
    assert tool(*flags)[0] == 0
    assert measured == ['float', 'lcq_w4a4_calibrated']
    for name in ('report.json', 'report.csv', 'report.md', 'map.png'):
        assert (folder / name).stat().st_size
    assert not list(folder.rglob('*.tmp'))


@pytest.mark.parametrize('content', [
    b'', b'<html>', b'RRR', b'PK\3\4' + bytes(100)
], ids=['empty', 'text', 'noise', 'truncated'])
def test_file_that_is_no_checkpoint_is_named(sweep_config, tmp_path, content):
    path = tmp_path / 'float.pth'
    path.write_bytes(content)
    sweep_config.load_from = str(path)
    with pytest.raises(LCQError, match='is not a checkpoint that can be read'
                       ) as info:
        check_float(sweep_config)
    assert str(path) in str(info.value) and '\n' not in str(info.value)


def test_mistake_in_the_model_is_not_blamed_on_the_checkpoint(sweep_config):
    sweep_config.model.backbone.colour = 'red'
    with pytest.raises(Exception, match='colour') as info:
        check_float(sweep_config)
    assert 'load_from' not in str(info.value)


def test_float_checkpoint_of_a_quantized_config_is_checked(sweep_config,
                                                           tmp_path):
    check_float(sweep_config)
    quantized = apply_lcq(sweep_config)
    check_float(quantized)
    state = torch.load(sweep_config.load_from)['state_dict']
    del state['bbox_head.retina_cls.weight']
    quantized.load_from = str(tmp_path / 'other.pth')
    torch.save(state, quantized.load_from)
    with pytest.raises(LCQError, match='bbox_head.retina_cls.weight'):
        check_float(quantized)


@pytest.fixture
def train(sweep_config, monkeypatch):
    """Train from what ``last_checkpoint`` names; return config and result."""
    folder = Path(sweep_config.work_dir)
    folder.mkdir()
    configs = []

    def train(last, ends_with):
        (folder / 'last_checkpoint').write_text(str(folder / last))

        def measure(cfg):
            configs.append(cfg)
            (folder / 'last_checkpoint').write_text(str(folder / ends_with))
            return dict(peak_memory=5)

        monkeypatch.setattr(measuring, '_measure_training', measure)
        result = measuring.train_row(sweep_config.copy())
        return configs[-1], result

    return train


def test_training_that_was_cut_off_goes_on(train, sweep_config):
    Path(sweep_config.work_dir, 'epoch_1.pth').touch()
    cfg, result = train('epoch_1.pth', ends_with='epoch_2.pth')
    assert cfg.resume and cfg.load_from.endswith('sweep/epoch_1.pth')
    assert result['peak_memory'] == 5


def test_training_that_lost_its_checkpoint_starts_anew(train, sweep_config):
    cfg, result = train('epoch_1.pth', ends_with='epoch_1.pth')
    assert not cfg.get('resume') and cfg.load_from == sweep_config.load_from
    assert result['peak_memory'] == 5


def test_training_that_was_done_has_no_memory_to_measure(train, sweep_config):
    Path(sweep_config.work_dir, 'epoch_2.pth').touch()
    _, result = train('epoch_2.pth', ends_with='epoch_2.pth')
    assert result['peak_memory'] is None


def test_pictures_show_the_lowest_widths_of_the_first_variant(
        sweep_config, monkeypatch):
    rows = plan([(8, 8), (4, 4), (3, 3), (2, 2)], ['lcq', 'uniform'], [0, 1],
                float_control=True)
    records = [row.label() for row in rows]
    records[rows.index(Row('lcq', (3, 3), 0))] = dict(error='diverged')
    opened = []
    monkeypatch.setattr(module, 'load_run',
                        lambda path, launcher: opened.append(Path(path).name))
    monkeypatch.setattr(module, 'Runner', MagicMock())
    sweep = Sweep(sweep_config, rows, sweep_config.work_dir)
    runs = sweep.fine_tuned_runs(records)
    assert list(runs) == ['float', 'lcq 4/4', 'lcq 3/3', 'lcq 2/2']
    assert opened == ['lcq_w4a4_seed0', 'lcq_w3a3_seed1', 'lcq_w2a2_seed0']
