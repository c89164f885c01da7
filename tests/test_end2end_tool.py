"""The tools with a graph from images to boxes."""
import json
import pickle

import onnx
import pytest
import torch
from exporting import make_config
from test_export_tool import write_trained


@pytest.fixture(scope='module')
def folder(toy_coco, tmp_path_factory):
    folder = tmp_path_factory.mktemp('end2end')
    write_trained(folder, make_config(root=toy_coco))
    write_trained(folder, make_config('FasterRCNN', root=toy_coco), 'faster_')
    return folder


@pytest.fixture
def call(call_tool, folder, monkeypatch):
    """Call a tool; return its error line, which may be empty."""
    monkeypatch.chdir(folder)

    def called(name, *flags):
        code, error = call_tool(name, *flags)
        assert bool(code) == bool(error and error[0].startswith('error: '))
        return error[0] if code else ''

    return called


def evaluate(call, folder, config, checkpoint):
    """Return the AP, and scores of all boxes."""
    work_dir = folder / f'{checkpoint}_tested'
    assert not call('test.py', config, checkpoint, '--work-dir', work_dir,
                    '--out', f'{checkpoint}.pkl')
    metrics, = work_dir.glob('*/*.json')
    metrics = json.loads(metrics.read_text().splitlines()[0])
    predictions = pickle.loads((folder / f'{checkpoint}.pkl').read_bytes())
    return metrics['coco/bbox_mAP'], [
        sample['pred_instances'] for sample in predictions
    ]


def test_config_of_a_training_stays_as_it_is(call, folder):
    """That of a graph would be taken for it by a report."""
    assert not call('export.py', 'config.py', 'epoch_1.pth', '--out',
                    'tested.onnx')
    (folder / 'run').mkdir()
    (folder / 'run/config.py').write_text('of the training')
    assert not call('test.py', 'config.py', 'tested.onnx', '--work-dir', 'run')
    assert (folder / 'run/config.py').read_text() == 'of the training'


@pytest.mark.parametrize('prefix', ['', 'faster_'])
def test_results_are_those_of_the_network_and_mmdet(prefix, call, folder):
    files = [f'{prefix}{name}' for name in ('config.py', 'epoch_1.pth')]
    for name, *flags in (('network.onnx', ), ('whole.onnx', '--end2end')):
        assert not call('export.py', *files, '--out', f'{prefix}{name}',
                        *flags)
    (one, first), (other, second) = (
        evaluate(call, folder, files[0], f'{prefix}{name}')
        for name in ('network.onnx', 'whole.onnx'))
    assert abs(one - other) < 1e-3
    for instances, others in zip(first, second):
        assert len(instances['scores']) == len(others['scores']) > 50
        assert torch.allclose(instances['scores'], others['scores'],
                              atol=1e-4)


def refusals_of(call, *flags):
    return call('test.py', 'config.py', *flags, '--work-dir', 'refused')


def test_files_that_do_not_fit_are_refused(call, folder):
    if not (folder / 'whole.onnx').exists():
        assert not call('export.py', 'config.py', 'epoch_1.pth', '--out',
                        'whole.onnx', '--end2end')
    content = (folder / 'whole.onnx').read_bytes()
    (folder / 'cut.onnx').write_bytes(content[:len(content) // 2])
    assert 'cut.onnx: ' in refusals_of(call, 'cut.onnx')
    model = onnx.load_from_string(content)
    model.metadata_props[0].value += ' '
    onnx.save(model, folder / 'altered.onnx')
    assert 'is ' in refusals_of(call, 'altered.onnx')
    assert ('whole.onnx: is of another config: model.test_cfg.max_per_img is '
            '100 in the file and 7') in refusals_of(
                call, 'whole.onnx', '--cfg-options',
                'model.test_cfg.max_per_img=7')
