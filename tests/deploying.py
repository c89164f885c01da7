"""A file that is a detector by itself, though it looks at little."""
import json
import subprocess
import sys
from pathlib import Path

import onnx

FOLDER = Path(__file__).parents[1] / 'examples/deploy'
# What a machine that only detects does not have.
ABSENT = ('torch', 'mmdet', 'mmcv', 'mmengine', 'cv2', 'onnx', 'lcq_mmdet')
DETECTOR = dict(
    format=1,
    classes=['frame', 'light'],
    palette=[[255, 0, 0], [0, 0, 255]],
    input=dict(name='image', layout='NHWC', dtype='uint8', channels='RGB'),
    resize=dict(
        width=64, height=48, keep_ratio=True, interpolation='bilinear'),
    outputs=['dets', 'labels'],
    arithmetic='float',
    score_thr=0.05,
    iou_thr=0.5)
# One box is the whole input; the score of a second one is the mean of the
# image; the third is none.
_GRAPH = '''
<ir_version: 10, opset_import: ["": 21]>
fake (uint8[N, H, W, 3] image) => (float[N, K, 5] dets, int64[N, K] labels)
<float[4] second = {4, 8, 12, 16}, float[6] zeros = {0, 0, 0, 0, 0, 0},
 float[1] best = {0.9}, float full = {255}, int64[3] classes = {0, 1, -1},
 int64[3] rows = {1, 3, 5}, int64[1] three = {3}, int64[1] zero = {0},
 int64[1] five = {5}, int64[2] axes = {1, 2}, int64[3] all = {1, 2, 3},
 float[15] place = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0}>
{
  n = Shape <start = 0, end = 1> (image)
  height = Shape <start = 1, end = 2> (image)
  width = Shape <start = 2, end = 3> (image)
  sides = Concat <axis = 0> (zero, zero, width, height)
  frame = Cast <to = 1> (sides)
  values = Cast <to = 1> (image)
  mean = ReduceMean <keepdims = 0> (values, all)
  score = Div (mean, full)
  flat = Concat <axis = 0> (frame, best, second, zeros)
  table = Reshape (flat, rows)
  shape = Concat <axis = 0> (n, three, five)
  boxes = Expand (table, shape)
  column = Unsqueeze (score, axes)
  mask = Reshape (place, rows)
  lit = Mul (column, mask)
  dets = Add (boxes, lit)
  pair = Concat <axis = 0> (n, three)
  labels = Expand (classes, pair)
}
'''


def write_detector(path, **changes):
    """Write the file; ``changes`` are those of what it says of itself."""
    model = onnx.parser.parse_model(_GRAPH)
    onnx.helper.set_model_props(
        model, dict(detector=json.dumps({**DETECTOR, **changes})))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def run_detect(*flags, absent=ABSENT):
    """Run ``detect.py`` where some packages cannot be imported."""
    program = FOLDER / 'detect.py'
    code = (f'import runpy, sys; sys.modules.update(dict.fromkeys({absent}));'
            f'sys.path.insert(0, {str(program.parent)!r});'
            f'runpy.run_path({str(program)!r}, run_name="__main__")')
    return subprocess.run([sys.executable, '-c', code, *map(str, flags)],
                          capture_output=True,
                          text=True,
                          timeout=120)
