"""The command line tools, as a user calls them."""
import csv
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training import load

ROOT = Path(__file__).parents[1]


def call(tool, *args, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True)


@pytest.fixture
def refusal(tmp_path, monkeypatch, capfd):
    """Call a tool that must fail; return its one line of error."""

    def refused(tool, *args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
        with pytest.raises(SystemExit) as info:
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        assert info.value.code == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith('error: ')
        return error

    return refused


@pytest.fixture
def config_file(tiny_config, tmp_path):
    tiny_config.pop('work_dir')
    tiny_config.log_level = 'INFO'
    path = tmp_path / 'tiny.py'
    tiny_config.dump(path)
    return path


def test_float_to_4_bit_to_report(config_file, tmp_path):
    def run(tool, *args):
        result = call(tool, *args, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout + result.stderr

    quantized = tmp_path / 'work_dirs/tiny_4bit'
    run('train.py', config_file)
    run('train.py', config_file, '--bits', 4, '--cfg-options',
        'load_from=work_dirs/tiny/epoch_2.pth')
    assert load(quantized / 'epoch_2.pth')['meta']['epoch'] == 2
    run('train.py', config_file, '--bits', 4, '--resume', '--cfg-options',
        'train_cfg.max_epochs=3',
        'load_from=work_dirs/tiny/epoch_2.pth')
    assert load(quantized / 'epoch_3.pth')['meta']['epoch'] == 3
    run('test.py', quantized / 'tiny.py', quantized / 'epoch_3.pth', '--out',
        'predictions.pkl', '--work-dir', 'tested')
    assert (tmp_path / 'predictions.pkl').stat().st_size

    # The pictures of levels are those of the last run that has some, and a
    # folder that is named twice is evaluated once.
    output = run('report.py', quantized, 'work_dirs/tiny',
                 'work_dirs/tiny/', '--out-dir', 'report')
    assert 'AP - float' in output
    rows = json.loads((tmp_path / 'report/report.json').read_text())['rows']
    assert [row['bits'] for row in rows] == ['4/4', 'float']
    assert all(0 <= row['metrics']['mAP'] <= 1 for row in rows)
    for name in ('detections.png', 'levels.png'):
        assert (tmp_path / 'report' / name).stat().st_size > 10000
        assert str(tmp_path / 'report' / name) in output


def test_float_checkpoint_is_quantized_before_testing(config_file, tmp_path,
                                                      float_checkpoint):
    for flags in ((), ('--tta', )):
        result = call(
            'test.py', config_file, float_checkpoint, '--weight-bits', 3,
            '--act-bits', 8, '--show-dir', 'shown', *flags, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
        output = result.stdout + result.stderr
        assert 'post-training quantization, 56 quantizers fitted' in output
        assert '3/8' in output
        assert list(tmp_path.glob('work_dirs/tiny_w3_a8/*/shown/*'))


def test_coco_config_runs_on_a_folder_in_cocos_place(toy_coco, tmp_path,
                                                     float_checkpoint):
    """Everything but the size of the run is as the config has it."""
    (tmp_path / 'data').mkdir()
    shutil.copytree(toy_coco, tmp_path / 'data' / 'coco')
    classes = [
        category['name'] for category in json.loads(
            (toy_coco / 'annotations/instances_val2017.json').read_text())
        ['categories']
    ]
    metainfo = str(tuple(classes)).replace(' ', '')
    result = call(
        'train.py',
        ROOT / 'configs/retinanet_lcq_4bit.py',
        '--cfg-options',
        f'train_dataloader.dataset.metainfo.classes={metainfo}',
        f'val_dataloader.dataset.metainfo.classes={metainfo}',
        'train_pipeline.2.scale=(64,64)',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(64,64)',
        f'model.bbox_head.num_classes={len(classes)}',
        'model.backbone.depth=18',
        'model.backbone.base_channels=8',
        'model.neck.in_channels=[8,16,32,64]',
        'model.neck.out_channels=16',
        'model.neck.norm_cfg.type=BN',
        'model.bbox_head.in_channels=16',
        'model.bbox_head.feat_channels=16',
        'model.bbox_head.stacked_convs=1',
        'model.test_cfg.score_thr=0.',
        'train_cfg.max_epochs=1',
        f'load_from={float_checkpoint}',
        cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'coco/bbox_mAP' in result.stdout + result.stderr


def test_missing_coco_says_how_to_get_it(refusal):
    error = refusal('train.py', ROOT / 'configs/retinanet_lcq_4bit.py')
    assert ("train_dataloader.dataset.ann_file: 'data/coco/annotations/"
            "instances_train2017.json' does not exist") in error
    assert 'https://cocodataset.org' in error
    assert 'configs/toy/' in error


def test_published_config_is_found_by_name(refusal):
    error = refusal('train.py',
                    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '--bits',
                    4)
    assert 'train_dataloader.dataset.ann_file' in error


@pytest.mark.parametrize('flags, message', [
    (['--bits', 9], 'bits=9: must be an integer from 2 to 8'),
    (['--weight-bits', 1, '--act-bits', 4],
     'weight_bits=1: must be an integer from 2 to 8'),
    (['--weight-bits', 8], '--weight-bits: the config has no other bits; add '
     '--act-bits, or --bits for both'),
    (['--act-bits', 8], '--act-bits: the config has no other bits; add'),
    (['--act-bits', 1, '--cfg-options', 'model.weight_bits=4'],
     'act_bits=1: must be an integer from 2 to 8'),
    (['--cfg-options', 'load_from=none.pth'],
     "load_from='none.pth': no such file"),
    (['--cfg-options', 'train_dataloader.dataset.data_root=elsewhere'],
     "'elsewhere/annotations/instances_train2017.json' does not exist; "
     'generate it'),
    (['--auto-scale-lr'], 'auto_scale_lr.base_batch_size'),
])
def test_mistake_is_told_in_one_line(config_file, tmp_path, refusal, flags,
                                     message):
    assert message in refusal('train.py', config_file, *flags)
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize('config, message', [
    ('none.py', "config='none.py': no such file"),
    ('mmdet::none.py', "config='mmdet::none.py'"),
])
def test_unknown_config_is_named(config, message, refusal):
    assert message in refusal('train.py', config)


def test_report_needs_trained_runs(tmp_path, refusal):
    error = refusal('report.py', 'nothing', '--out-dir', 'out')
    assert 'nothing: there is no config' in error
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def sweep_flags(config_file, float_checkpoint):
    return [
        config_file, '--work-dir', 'sweep', '--cfg-options',
        f'load_from={float_checkpoint}', 'train_cfg.max_epochs=1',
        'default_scope=mmdet'
    ]


def test_sweep_reports_goes_on_and_keeps_to_its_config(
        sweep_flags, tmp_path, refusal):
    flags = [*sweep_flags, '--bits', 32, 4, 2, '--seeds', 0, 1, '--quantizer',
             'lcq', 'uniform']
    folder = tmp_path / 'sweep'
    result = call('sweep.py', *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((folder / 'report.json').read_text())
    rows = report['rows']
    assert [(row['name'], row['bits'], row['seed']) for row in rows[:5]] == [
        ('float', 'float', None), ('lcq, calibrated', '4/4', None),
        ('lcq, fine-tuned', '4/4', 0), ('lcq, fine-tuned', '4/4', 1),
        ('uniform, calibrated', '4/4', None)
    ]
    assert len(rows) == 13 and not any('error' in row for row in rows)
    assert all(0 <= row['metrics']['mAP'] <= 1 for row in rows)
    float_row, four, two = rows[0], rows[2], rows[8]
    assert two['cost']['bytes'] < four['cost']['bytes'] < float_row['cost'][
        'bytes']
    assert two['cost']['bops'] < four['cost']['bops'] < float_row['cost'][
        'bops']
    assert min(float_row['seconds_per_iter'], two['seconds_per_iter']) > 0
    with open(folder / 'report.csv') as file:
        assert len(list(csv.DictReader(file))) == 13
    text = (folder / 'report.md').read_text()
    for name in ('map.png', 'levels.png', 'detections.png'):
        assert f'({name})' in text
        assert (folder / name).stat().st_size > 10000

    # An interrupted sweep: one row is lost, one was cut off in training.
    (folder / 'lcq_w2a2_calibrated/row.json').unlink()
    (folder / 'lcq_w2a2_seed1/row.json').unlink()
    kept = folder / 'lcq_w4a4_seed0/row.json'
    time = kept.stat().st_mtime_ns
    result = call('sweep.py', *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    again = json.loads((folder / 'report.json').read_text())['rows']
    assert [row['metrics'] for row in again] == [row['metrics']
                                                 for row in rows]
    assert kept.stat().st_mtime_ns == time
    assert not list(folder.rglob('*.tmp'))

    error = refusal('sweep.py', *flags, '--cfg-options',
                    *sweep_flags[4:], 'train_cfg.max_epochs=2')
    assert "--work-dir='sweep': holds a sweep of another config" in error
    assert 'train_cfg.max_epochs was 1 and is 2' in error


def test_failing_row_is_reported_and_the_others_run(sweep_flags, tmp_path):
    folder = tmp_path / 'sweep' / 'lcq_w4a4_seed0'
    folder.mkdir(parents=True)
    (folder / 'broken.pth').write_text('no checkpoint')
    (folder / 'last_checkpoint').write_text(str(folder / 'broken.pth'))
    flags = [*sweep_flags, '--weight-bits', 4, 3, '--act-bits', 4]
    result = call('sweep.py', *flags, '--progressive', cwd=tmp_path)
    assert result.returncode == 2
    assert 'error: 2 of 5 rows failed' in result.stderr
    rows = json.loads((tmp_path / 'sweep/report.json').read_text())['rows']
    assert rows[2]['error'].startswith('UnpicklingError: ')
    assert rows[4]['error'] == ('LCQError: starts from lcq_w4a4_seed0, which '
                                'failed')
    assert 'metrics' in rows[3]
    assert '## Failed rows' in (tmp_path / 'sweep/report.md').read_text()

    (folder / 'last_checkpoint').unlink()
    result = call('sweep.py', *flags, '--progressive', cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    logs = [path.read_text() for path in
            (tmp_path / 'sweep/lcq_w3a4_seed0').glob('*/*.log')]
    assert any('all 56 quantizers came with the checkpoint; kept: 27 of 56'
               in log for log in logs)


def test_variants_of_a_sweep_differ_in_their_settings(sweep_flags, tmp_path,
                                                      refusal):
    (tmp_path / 'symmetric.py').write_text(
        "model = dict(signed_act='symmetric')")
    flags = [*sweep_flags, '--bits', 2, '--no-train', '--variant', 'default',
             '--variant', 'no_norm', 'model.weight_norm=none', '--variant',
             'symmetric', 'symmetric.py']
    result = call('sweep.py', *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = json.loads((tmp_path / 'sweep/report.json').read_text())['rows']
    assert [row['name'] for row in rows] == [
        'float', 'default, calibrated', 'no_norm, calibrated',
        'symmetric, calibrated'
    ]
    assert rows[2]['options'] == {'model.weight_norm': 'none'}
    sizes = [row['cost']['bytes'] for row in rows[1:]]
    assert sizes[0] == sizes[1] > sizes[2]

    error = refusal('sweep.py', *flags[:-4], 'model.weight_norm=channel')
    assert '--variant no_norm: ' in error and 'choose another name' in error


@pytest.mark.parametrize('flags, message', [
    (['--variant', 'lcq/uniform'], "--variant 'lcq/uniform': must be a name"),
    (['--variant', 'a', '--variant', 'a'], "--variant 'a': must be a name"),
    (['--variant', 'a', 'none.py'], "config='none.py': no such file"),
    (['--bits', 32, 9], '--bits=9: must be an integer from 2 to 8'),
    (['--bits', 'w4a9'], '--bits=9: must be an integer'),
    (['--act-bits', 32, '--weight-bits', 4], '--act-bits=32: must be'),
    (['--weight-bits', 4, 2, '--act-bits', 8, 4, 2], 'as many values'),
    (['--weight-bits', 4], 'give both'),
    (['--cfg-options', 'load_from=broken.pth'],
     "load_from='broken.pth': is not a checkpoint that can be read"),
    (['--cfg-options', 'load_from=float.pth', 'model.backbone.depth=34'],
     'is not of this detector'),
    ([], 'load_from: a sweep starts from a trained float detector'),
])
def test_mistake_in_a_sweep_is_told_in_one_line(config_file, tmp_path, refusal,
                                                float_checkpoint, flags,
                                                message):
    (tmp_path / 'broken.pth').write_bytes(
        Path(float_checkpoint).read_bytes()[:1000])
    shutil.copy(float_checkpoint, tmp_path / 'float.pth')
    assert message in refusal('sweep.py', config_file, *flags)
    assert not (tmp_path / 'work_dirs').exists()
