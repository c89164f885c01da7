"""The page of examples/deploy/web in headless Chromium."""
import json
import shutil
import subprocess

import numpy as np
import pytest
from deploying import FOLDER, run_detect, write_detector
from PIL import Image

WEB = FOLDER / 'web'
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')

pytestmark = [
    pytest.mark.skipif(
        not (WEB / 'node_modules').is_dir(),
        reason='run npm install in examples/deploy/web'),
    pytest.mark.skipif(not CHROMIUM, reason='there is no Chromium'),
]


def open_page(*arguments):
    """Return the exit code, and what the page shows."""
    done = subprocess.run(
        ['node', 'check.mjs', *map(str, arguments), '--chromium', CHROMIUM],
        cwd=WEB, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_page_finds_what_the_program_finds(tmp_path):
    model = write_detector(tmp_path / 'model.onnx')
    # Upright, it is 90 pixels wide and 130 high.
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = tmp_path / 'picture.jpg'
    Image.fromarray(pixels).save(picture, exif=exif)
    code, page = open_page(model, picture, '--out', tmp_path)
    assert code == 0, page
    assert '90 x 130 pixels' in page['status']
    assert not page['wide']
    done = run_detect(model, picture, '--json', '--score-thr', 0, '--out-dir',
                      tmp_path / 'out')
    expected = json.loads(done.stdout)['objects']
    assert len(page['objects']) == len(expected) == 2
    for found, wanted in zip(page['objects'], expected):
        assert found['name'] == wanted['name']
        assert found['score'] == pytest.approx(wanted['score'], abs=0.003)
        assert found['box'] == pytest.approx(wanted['box'], abs=0.01)
    with Image.open(tmp_path / 'phone.png') as screenshot:
        assert screenshot.size == (390, 844)


@pytest.mark.parametrize('content, message', [
    (lambda whole: whole[:300], 'is cut off'),
    (lambda whole: whole.replace(b'detector', b'describe'),
     'is no detector by itself'),
], ids=['cut_off', 'no_detector'])
def test_page_tells_what_is_wrong_with_a_file(content, message, tmp_path):
    model = write_detector(tmp_path / 'model.onnx')
    model.write_bytes(content(model.read_bytes()))
    code, page = open_page(model)
    assert code == 1
    assert message in page['status']
