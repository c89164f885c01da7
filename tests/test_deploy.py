import importlib
import json
import shutil
import sys

import cv2
import mmcv
import numpy as np
import onnx
import pytest
import torch
from deploying import FOLDER, run_detect, write_detector
from exporting import make_config, make_model
from mmcv.transforms import Resize
from PIL import Image

from lcq_mmdet.export.end2end import export_end2end

ENGINES = [
    'onnxruntime',
    pytest.param(
        'openvino',
        marks=pytest.mark.skipif(
            importlib.util.find_spec('openvino') is None,
            reason='openvino is not installed'))
]


@pytest.fixture
def module(monkeypatch):
    """The module beside the program."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module('detector')
    sys.modules.pop('detector')


@pytest.fixture
def model(tmp_path):
    return write_detector(tmp_path / 'model.onnx')


@pytest.fixture
def pixels():
    """An image as OpenCV has it, 80 x 120, BGR."""
    small = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    return cv2.resize(small, (120, 80), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def photos(tmp_path, pixels):
    """A folder of two images."""
    folder = tmp_path / 'photos'
    (folder / 'more').mkdir(parents=True)
    cv2.imwrite(str(folder / 'a.png'), pixels)
    cv2.imwrite(str(folder / 'more/a.png'), np.full((96, 128, 3), 51))
    return folder


@pytest.mark.parametrize('engine', ENGINES)
def test_detects_without_torch_and_mmdet(engine, model, photos, tmp_path):
    done = run_detect(model, photos, '--engine', engine, '--out-dir',
                      tmp_path / 'out', '--json', '--score-thr', 0.1)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first['width'], first['height']) == (120, 80)
    assert second['image'] == str(photos / 'more/a.png')
    frame, light = second['objects']
    assert frame == dict(
        label=0, name='frame', score=pytest.approx(0.9), box=[0, 0, 128, 96])
    assert light['box'] == [8, 16, 24, 32]
    assert light['score'] == pytest.approx(0.2, abs=0.003)
    assert '[2/2]' in done.stderr
    drawn = np.asarray(Image.open(tmp_path / 'out/more/a.png'))
    assert tuple(drawn[16, 20]) == (0, 0, 255)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A detector in 8-bit integers, whose pyramid levels share weights."""
    cfg = make_config()
    path = tmp_path_factory.mktemp('exported') / 'model.onnx'
    export_end2end(make_model(cfg), str(path), cfg, int8='relaxed',
                   images=[torch.randn(1, 3, 64, 96)])
    return path


@pytest.mark.parametrize('engine', ENGINES)
def test_integer_file_of_the_tool_is_run(engine, exported, photos, tmp_path):
    done = run_detect(exported, photos, '--engine', engine, '--out-dir',
                      tmp_path / 'out', '--json', '--score-thr', 0)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert json.loads(line)['objects']


def test_sums_are_exact_where_they_would_saturate(exported, module,
                                                  monkeypatch):
    image = Image.new('RGB', (96, 64), 'teal')
    expected, _ = module.Detector(exported)(image)
    monkeypatch.setattr(module, '_sums_saturate', lambda engine: True)
    found, _ = module.Detector(exported)(image)
    assert len(found) > 10
    assert found[:10, 4] == pytest.approx(expected[:10, 4], abs=0.05)


def test_text_names_classes_and_times(model, photos, tmp_path):
    done = run_detect(model, photos / 'a.png', '--out-dir', tmp_path,
                      '--score-thr', 0.8)
    assert done.returncode == 0, done.stderr
    image, box, summary = done.stdout.splitlines()
    assert 'a.png: 1 object, ' in image and image.endswith(' ms')
    assert box == '    frame 0.90 at 0.0 0.0 120.0 80.0'
    assert summary.startswith(f'written to {tmp_path}; median ')


def test_unreadable_image_is_skipped_and_told(model, photos, tmp_path):
    whole = (photos / 'a.png').read_bytes()
    (photos / 'b.png').write_bytes(whole[:len(whole) // 2])
    (photos / 'c.jpg').write_text('no image')
    done = run_detect(model, photos, '--out-dir', tmp_path / 'out')
    assert done.returncode == 1
    assert [line.split(':')[0] for line in done.stderr.splitlines()
            ] == ['skipped'] * 2
    assert 'b.png' in done.stderr and 'c.jpg' in done.stderr
    assert '[4/4]' in done.stdout


def altered(path, **changes):
    model = onnx.load(path)
    onnx.helper.set_model_props(model, changes)
    onnx.save(model, path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


MISTAKES = dict(
    no_detector=(lambda path: altered(path, config='{}'),
                 'is no detector by itself'),
    altered=(lambda path: altered(path, detector='{"format": 1'),
             'metadata are altered'),
    newer=(lambda path: write_detector(path, format=2), 'is of format 2'),
    cut_off=(cut, 'is cut off'),
    empty=(lambda path: path.write_bytes(b''), 'is cut off'),
    absent=(lambda path: path.unlink(), 'cannot be read'),
    folder=(lambda path: (path.unlink(), path.mkdir()), 'cannot be read'),
    interpolation=(lambda path: write_detector(
        path,
        resize=dict(
            width=8, height=8, keep_ratio=True, interpolation='area')),
                   "'area'"))


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('mistake', MISTAKES)
def test_wrong_file_is_told_in_one_line(mistake, engine, model, module):
    change, message = MISTAKES[mistake]
    change(model)
    with pytest.raises(module.Failure, match=message) as told:
        module.Detector(model, engine)
    assert str(model) in str(told.value)
    assert '\n' not in str(told.value)


def test_missing_engine_is_named(model, photos):
    done = run_detect(model, photos, '--engine', 'openvino',
                      absent=('openvino', ))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        'error: openvino is not installed: pip install openvino; or name '
        'another with --engine'
    ]


def test_no_image_is_told_before_the_file_is_read(tmp_path):
    done = run_detect('none.onnx', tmp_path / 'none.png')
    assert done.returncode == 2
    assert 'none.png: no such file or folder' in done.stderr


def test_images_are_not_overwritten(model, photos):
    before = (photos / 'a.png').read_bytes()
    done = run_detect(model, photos / 'a.png', '--out-dir', photos)
    assert done.returncode == 2 and 'overwritten' in done.stderr
    assert (photos / 'a.png').read_bytes() == before
    # One image may go where another one lies.
    other = photos / 'other'
    other.mkdir()
    shutil.copy(photos / 'a.png', other)
    done = run_detect(model, other / 'a.png', photos / 'a.png', '--out-dir',
                      photos)
    assert done.returncode == 2
    assert f'{photos / "a.png"} would be overwritten' in done.stderr


def save(image, path, **options):
    image.save(path, **options)
    return path


def rotated(image, path):
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(image, path, exif=exif)


def deep(image, path):
    cv2.imwrite(str(path), np.asarray(image.convert('L')) * np.uint16(257))
    return path


IMAGES = {
    'rotated.jpg': rotated,
    'deep.png': deep,
    'gray.png': lambda image, path: save(image.convert('L'), path),
    'alpha.png': lambda image, path: save(image.convert('RGBA'), path),
    'gray_alpha.png': lambda image, path: save(image.convert('LA'), path),
    'palette.png': lambda image, path: save(image.convert('P'), path),
    'bits.png': lambda image, path: save(image.convert('1'), path),
    'cmyk.jpg': lambda image, path: save(image.convert('CMYK'), path),
}


@pytest.mark.parametrize('name', IMAGES)
def test_images_are_read_as_mmdet_reads_them(name, module, pixels, tmp_path):
    path = IMAGES[name](Image.fromarray(pixels), tmp_path / name)
    found = np.asarray(module.read_image(path), int)
    expected = mmcv.imread(path, channel_order='rgb')
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 1


@pytest.mark.parametrize('keep_ratio', [True, False])
@pytest.mark.parametrize('scale', [(64, 48), (48, 64), (333, 200), (7, 5)])
def test_images_are_resized_as_mmdet_does(scale, keep_ratio, module, pixels):
    how = dict(width=scale[0], height=scale[1], keep_ratio=keep_ratio)
    image = Image.fromarray(pixels)
    found = module.resize(image, module.resized(image.size, how))
    expected = Resize(
        scale=scale, keep_ratio=keep_ratio)(dict(img=pixels))['img']
    assert found.size == expected.shape[1::-1]
    assert abs(np.asarray(found, int) - expected).max() <= 1


def test_file_without_resizing_takes_any_size(module, model):
    write_detector(model, resize=None)
    dets, labels = module.Detector(model)(Image.new('RGB', (31, 17)))
    assert dets[0, :4].tolist() == [0, 0, 31, 17]
    assert labels.tolist() == [0, 1]
