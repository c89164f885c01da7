"""The packed file where a checkpoint goes: tools, mmdet's API, the hook."""
import json
import pickle
import runpy
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from exporting import make_config, make_model
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.registry import DATASETS
from mmengine.runner import CheckpointLoader, Runner

from lcq_mmdet import LCQError
from lcq_mmdet.conversion.model import float_config
from lcq_mmdet.export import load_packed
from lcq_mmdet.export.engines import ENGINES

ROOT = Path(__file__).parents[1]
NUMBERS = count()


def write_trained(folder, cfg, name=''):
    """Write config and checkpoint as a training leaves them."""
    cfg.dump(folder / f'{name}config.py')
    model = make_model(cfg)
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset))
    torch.save(
        dict(
            state_dict=model.state_dict(),
            meta=dict(
                dataset_meta=dataset.metainfo, cfg=cfg.pretty_text, epoch=1)),
        folder / f'{name}epoch_1.pth')


@pytest.fixture(scope='module')
def trained(toy_coco, tmp_path_factory):
    """Two detectors as a 4-bit training leaves them, in one folder."""
    folder = tmp_path_factory.mktemp('trained')
    write_trained(folder, make_config(root=toy_coco))
    write_trained(folder, make_config('FasterRCNN', root=toy_coco), 'faster_')
    return folder


@pytest.fixture(scope='module')
def call(trained):
    """Call a tool; return its exit status."""

    def called(tool, *args):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(trained)
            patch.setattr(sys, 'argv', [tool, *map(str, args)])
            try:
                runpy.run_path(
                    str(ROOT / 'tools' / tool), run_name='__main__')
            except SystemExit as stop:
                return stop.code
        return 0

    return called


@pytest.fixture(scope='module')
def packed(trained, call):
    assert call('export.py', 'config.py', 'epoch_1.pth', '--out',
                'model.safetensors') == 0
    return trained / 'model.safetensors'


@pytest.fixture
def refusal(call, capfd):

    def refused(tool, *args):
        assert call(tool, *args) == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith('error: ')
        return error

    return refused


def test_sizes_are_told(call, trained, packed, capfd):
    assert call('export.py', 'config.py', 'epoch_1.pth', '--out',
                'half.safetensors', '--half') == 0
    output = capfd.readouterr().out
    size = (trained / 'half.safetensors').stat().st_size
    assert size < packed.stat().st_size
    for text in ('float model', 'quantized weights', 'header', 'overhead',
                 f' {size / 1e6:.3f} '):
        assert text in output


def run_test(call, folder, config, checkpoint, *flags):
    """Evaluate; return metrics and predicted instances."""
    # mmengine goes on writing to the folder of an earlier run.
    work_dir = folder / f'{checkpoint}_tested_{next(NUMBERS)}'
    assert call('test.py', config, checkpoint, '--work-dir', work_dir,
                '--out', f'{checkpoint}.pkl', *flags) == 0
    metrics, = work_dir.glob('*/*.json')
    metrics = json.loads(metrics.read_text().splitlines()[0])
    predictions = pickle.loads((folder / f'{checkpoint}.pkl').read_bytes())
    instances = [p['pred_instances'] for p in predictions]
    assert sum(len(found['scores']) for found in instances)
    return metrics['coco/bbox_mAP'], instances


@pytest.mark.parametrize('flags', [(), ('--tta', )], ids=['plain', 'tta'])
def test_results_of_both_files_are_the_same(call, trained, packed, flags):
    (one, first), (other, second) = (
        run_test(call, trained, 'config.py', name, *flags)
        for name in ('epoch_1.pth', 'model.safetensors'))
    assert one == other
    for instances, others in zip(first, second):
        for key in instances:
            assert torch.equal(instances[key], others[key])


def sorted_scores(instances):
    return torch.cat([each['scores'] for each in instances]).sort(
        descending=True)[0]


@pytest.mark.parametrize('prefix', ['', 'faster_'])
def test_graphs_are_evaluated(call, trained, prefix):
    """In float the results are those of torch; in 8 bits they are near."""
    files = [f'{prefix}{name}' for name in ('config.py', 'epoch_1.pth')]
    expected, instances = run_test(call, trained, *files)
    one = sorted_scores(instances)
    for flags, room in (((), 2e-3), (('--int8', 'exact'), 0.1),
                        (('--int8', 'relaxed'), 0.1)):
        name = f'{prefix}{"_".join(("model", *flags))}.onnx'
        assert call('export.py', *files, '--out', name, *flags) == 0
        found, instances = run_test(call, trained, files[0], name)
        other = sorted_scores(instances)
        assert abs(found - expected) <= 0.02
        most = min(len(one), len(other))
        assert most >= 0.9 * max(len(one), len(other))
        difference = (one[:most] - other[:most]).norm()
        assert 0 < difference < room * one[:most].norm()


def test_other_engine_finds_the_same(call, trained):
    pytest.importorskip('openvino')
    assert call('export.py', 'config.py', 'epoch_1.pth', '--out', 'both.onnx',
                '--int8', 'exact') == 0
    (one, first), (other, second) = (
        run_test(call, trained, 'config.py', 'both.onnx', '--engine', engine)
        for engine in ENGINES)
    assert abs(one - other) <= 0.002
    first, second = map(sorted_scores, (first, second))
    most = min(len(first), len(second))
    assert most >= 0.9 * max(len(first), len(second))
    difference = (first[:most] - second[:most]).norm()
    assert 0 < difference < 0.1 * first[:most].norm()


def test_engines_are_for_graphs_and_must_be_installed(trained, refusal,
                                                      monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    (trained / 'any.onnx').write_bytes(b'a graph')
    assert "engine='openvino': is not installed: pip install 'lcq_mm" in (
        refusal('test.py', 'config.py', 'any.onnx', '--engine', 'openvino'))
    assert "--engine='openvino': is for graphs (.onnx)" in refusal(
        'test.py', 'config.py', 'epoch_1.pth', '--engine', 'openvino')


def test_only_integers_need_data(call, refusal):
    """And what is missing is told before anything is loaded."""
    missing = ('--cfg-options', 'train_dataloader.dataset.data_root=none',
               'load_from=none.pth')
    assert call('export.py', 'config.py', 'epoch_1.pth', '--out',
                'no_data.onnx', *missing) == 0
    flags = ('--out', 'x.onnx', '--int8', 'exact')
    assert 'train_dataloader.dataset.ann_file' in refusal(
        'export.py', 'config.py', 'epoch_1.pth', *flags, *missing)
    assert "--keep-float: the pattern 'head' matches no layer" in refusal(
        'export.py', 'config.py', 'epoch_1.pth', *flags, '--keep-float',
        'head')
    assert "--keep-float=['head']: is for --int8" in refusal(
        'export.py', 'config.py', 'epoch_1.pth', '--out', 'x.onnx',
        '--keep-float', 'head')


@pytest.fixture(scope='module')
def image():
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


def assert_same_instances(one, other):
    assert len(one.scores)
    for key in ('bboxes', 'scores', 'labels'):
        assert torch.equal(one[key], other[key])


def test_init_detector_takes_it(trained, packed, image):
    config = str(trained / 'config.py')
    models = [
        init_detector(config, str(path), device='cpu')
        for path in (trained / 'epoch_1.pth', packed)
    ]
    one, other = (inference_detector(m, image) for m in models)
    assert_same_instances(one.pred_instances, other.pred_instances)
    assert models[0].dataset_meta == models[1].dataset_meta


@pytest.mark.parametrize('with_config', [True, False])
def test_inferencer_takes_it(trained, packed, image, with_config):
    config = str(trained / 'config.py') if with_config else None
    one, other = (
        DetInferencer(config, str(path), device='cpu', show_progress=False)
        (image, return_datasamples=True, no_save_vis=True)['predictions'][0]
        for path in (trained / 'epoch_1.pth', packed))
    assert_same_instances(one.pred_instances, other.pred_instances)


@pytest.mark.parametrize('path, loader', [
    ('a/model.safetensors', 'load_from_packed'),
    ('~/a.b/model.safetensors', 'load_from_packed'),
    ('model.safetensors.pth', 'load_from_local'),
    ('model.pth', 'load_from_local'),
    ('https://host/model.safetensors', 'load_from_http'),
    ('s3://bucket/model.safetensors', 'load_from_ceph'),
])
def test_only_packed_files_get_another_loader(path, loader):
    found = CheckpointLoader._get_checkpoint_loader(path)
    assert found.__name__ == loader


def test_tensors_go_where_they_are_asked_to(packed):
    for location, device in ((None, 'cpu'), ('meta', 'meta')):
        state = CheckpointLoader.load_checkpoint(
            str(packed), location)['state_dict']
        assert {value.device.type for value in state.values()} == {device}
        assert state._metadata['']


@pytest.mark.parametrize('resume', [False, True])
def test_training_does_not_go_on_from_it(toy_coco, tmp_path, packed, resume):
    cfg = make_config(root=toy_coco)
    cfg.update(load_from=str(packed), resume=resume, work_dir=str(tmp_path))
    runner = Runner.from_cfg(cfg)
    with pytest.raises(LCQError, match='a packed one, .* 28 .backbone.conv1'):
        runner.train()


def test_mistakes_are_told_in_one_line(toy_coco, trained, packed, refusal):
    state = torch.load(trained / 'epoch_1.pth')['state_dict']
    torch.save(dict(state_dict={
        key: value for key, value in state.items() if '_quantizer.' not in key
    }), trained / 'float.pth')
    torch.save(dict(state_dict=dict(
        state, **{'neck.fpn_convs.0.conv.act_quantizer.initialized':
                  torch.tensor(False)})), trained / 'uncalibrated.pth')
    float_config(make_config(root=toy_coco)).dump(trained / 'float.py')
    (trained / 'broken.safetensors').write_bytes(packed.read_bytes()[:-1])

    def export(config, checkpoint, *flags, out='x.safetensors'):
        return refusal('export.py', config, checkpoint, '--out', out, *flags)

    assert 'must end in .safetensors' in export(
        'config.py', 'epoch_1.pth', out='x.bin')
    assert "checkpoint='none.pth': no such file; give one of its" in export(
        'config.py', 'none.pth')
    assert 'give the config first' in export('epoch_1.pth', 'config.py')
    assert 'still is float, it has no backbone.conv1.act_quantizer' in export(
        'config.py', 'float.pth')
    assert 'neck.fpn_convs.0.conv: was never calibrated' in export(
        'config.py', 'uncalibrated.pth')
    assert 'the config is of a float model' in export(
        'float.py', 'epoch_1.pth')
    assert 'backbone.conv1: is packed already' in export(
        'config.py', 'model.safetensors')
    assert 'does not fit the config, its bbox_head.retina_cls.' in export(
        'config.py', 'epoch_1.pth', '--cfg-options',
        'model.bbox_head.num_classes=3')
    assert ('neck.lateral_convs.0.conv.act_quantizer the checkpoint has 4 '
            'bits and the config 2; give the config or the --bits of its '
            'training') in export('config.py', 'epoch_1.pth', '--cfg-options',
                                  'model.overrides.neck.bits=2')
    assert 'cannot be written' in export(
        'config.py', 'epoch_1.pth', out='none/x.safetensors')
    assert not list(trained.glob('x.*'))

    assert 'broken.safetensors: is cut off' in refusal(
        'test.py', 'config.py', 'broken.safetensors')
    assert 'act_bits=4 in the file and 3' in refusal(
        'test.py', 'config.py', 'model.safetensors', '--act-bits', 3)
    for name in ('none.onnx', 'none.safetensors'):
        assert (f"checkpoint='{name}': no such file; lcq export writes it"
                in refusal('test.py', 'config.py', name))
    assert "'float.py': is of a float model" in refusal(
        'test.py', 'float.py', 'model.safetensors')
    assert "load_from='model.safetensors': is a packed checkpoint" in refusal(
        'sweep.py', 'config.py', '--cfg-options',
        'load_from=model.safetensors')


def test_packed_file_is_a_checkpoint(packed):
    checkpoint = load_packed(str(packed))
    assert checkpoint.keys() == {'meta', 'state_dict'}
    assert checkpoint['meta'].keys() == {'cfg', 'dataset_meta'}
