"""A detector in one file of ``export.py --end2end``, and how to run it.

Needs numpy, pillow and one engine, onnxruntime or openvino; nothing else.
"""
import json
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import Any, Callable, List, Mapping, Tuple

import numpy as np
from PIL import Image, ImageOps

FORMAT = 1
# An ONNX graph: y = MatMulInteger(x, w), of shapes (4, 64) and (64, 4).
_PRODUCTS = (
    b'\x08\x08:^\n\x1a\n\x01x\n\x01w\x12\x01y"\rMatMulInteger:\x00\x12\x01'
    b'gZ\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x04\n\x02\x08'
    b'@Z\x13\n\x01w\x12\x0e\n\x0c\x08\x03\x12\x08\n\x02\x08@\n\x02\x08\x04b'
    b'\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x04\n\x02\x08\x04B'
    b'\x04\n\x00\x10\r')
#: From an image, uint8, (1, height, width, 3), to boxes and labels.
Run = Callable[[np.ndarray], Tuple[np.ndarray, np.ndarray]]


class Failure(Exception):
    """What the user can put right, in one line."""


def load_onnxruntime(content: bytes) -> Tuple[Mapping[str, str], Run]:
    """Return what the file says of itself, and how it is run."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state
    try:
        # Where products would not be right, they are computed in float.
        unfused = (['QDQSelectorActionTransformer']
                   if _sums_saturate(onnxruntime) else None)
        session = onnxruntime.InferenceSession(
            content,
            providers=['CPUExecutionProvider'],
            disabled_optimizers=unfused)
    except (state.Fail, state.InvalidArgument, state.InvalidGraph,
            state.InvalidProtobuf, state.NotImplemented,
            state.RuntimeException) as error:
        raise Failure(_first_line(error)) from None

    def run(image: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        try:
            dets, labels = session.run(['dets', 'labels'], {'image': image})
        except (state.Fail, state.InvalidArgument,
                state.RuntimeException) as error:
            raise Failure(_first_line(error)) from None
        return dets, labels

    return session.get_modelmeta().custom_metadata_map, run


def _sums_saturate(onnxruntime: Any) -> bool:
    """Find out whether 8-bit products are added up in too few bits.

    onnxruntime does so on x86 CPUs without 8-bit dot products (VNNI).
    """
    session = onnxruntime.InferenceSession(
        _PRODUCTS, providers=['CPUExecutionProvider'])
    sums, = session.run(None, dict(
        x=np.full((4, 64), 255, np.uint8), w=np.full((64, 4), 127, np.int8)))
    return bool((sums != 64 * 255 * 127).any())


def load_openvino(content: bytes) -> Tuple[Mapping[str, str], Run]:
    """Return what the file says of itself, and how it is run."""
    import openvino
    core = openvino.Core()
    # In less than 32 bits, as CPUs with AMX would, results are others.
    settings = dict(
        PERFORMANCE_HINT='LATENCY', INFERENCE_PRECISION_HINT='f32')
    try:
        model = core.read_model(content)
        compiled = core.compile_model(model, 'CPU', settings)
    except RuntimeError as error:
        raise Failure(_last_line(error)) from None
    metadata = {}
    if model.has_rt_info(['framework', 'detector']):
        metadata['detector'] = model.get_rt_info(['framework',
                                                  'detector']).astype(str)

    def run(image: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        try:
            found = compiled({'image': image})
        except RuntimeError as error:
            raise Failure(_last_line(error)) from None
        return found['dets'], found['labels']

    return metadata, run


ENGINES = dict(onnxruntime=load_onnxruntime, openvino=load_openvino)


class Detector:
    """A detector in one file.

    Args:
        path: File of ``export.py --end2end``.
        engine: ``'onnxruntime'`` or ``'openvino'``.

    Attributes:
        classes: Names by label.

    Raises:
        Failure: If the engine is not installed, or the file is no such file.
    """

    def __init__(self, path: str, engine: str = 'onnxruntime') -> None:
        try:
            content = Path(path).read_bytes()
            metadata, self._run = ENGINES[engine](content)
        except ImportError:
            raise Failure(f'{engine} is not installed: pip install {engine}; '
                          'or name another with --engine') from None
        except OSError as error:
            raise Failure(f'{path}: cannot be read: '
                          f'{error.strerror}') from None
        except Failure as error:
            raise Failure(f'{path}: is cut off, or no ONNX file that {engine} '
                          f'takes: {error}') from None
        if 'detector' not in metadata:
            raise Failure(f'{path}: is no detector by itself; write one with '
                          'export.py --end2end')
        try:
            told = json.loads(metadata['detector'])
            version = told['format']
            self.classes: List[str] = told['classes']
            self._palette = told.get('palette')
            self._resize = told['resize']
        except (ValueError, TypeError, KeyError) as error:
            raise Failure(f'{path}: its metadata are altered: '
                          f'{error!r}') from None
        if version != FORMAT:
            raise Failure(f'{path}: is of format {version}, and this program '
                          f'reads {FORMAT}; take the detect.py that came with '
                          'the export.py which wrote it')
        if self._resize and self._resize['interpolation'] != 'bilinear':
            raise Failure(f'{path}: images are resized with '
                          f'{self._resize["interpolation"]!r} interpolation; '
                          "this program knows 'bilinear'")

    def __call__(self, image: Image.Image) -> Tuple[np.ndarray, np.ndarray]:
        """Detect objects.

        Args:
            image: Of mode RGB, in any size.

        Returns:
            Boxes, float32, shape (K, 5): left, top, right and bottom in
            pixels of the image, and the score, [0, 1]; and their labels,
            shape (K).

        Raises:
            Failure: If the engine cannot run with such an image.
        """
        size = resized(image.size, self._resize)
        scale = np.divide(image.size, size)
        pixels = np.asarray(resize(image, size))
        dets, labels = self._run(pixels[np.newaxis])
        found = labels[0] >= 0
        dets = dets[0][found]
        dets[:, :4] *= np.tile(scale, 2).astype(np.float32)
        return dets, labels[0][found]

    def color(self, label: int) -> Tuple[int, int, int]:
        """Return the color of a class, red, green and blue, 0 to 255."""
        if self._palette:
            red, green, blue = self._palette[label % len(self._palette)]
            return red, green, blue
        red, green, blue = (
            round(255 * part) for part in hsv_to_rgb(label * 0.618 % 1, 1, 1))
        return red, green, blue


def resized(size: Tuple[int, int],
            how: Mapping[str, Any]) -> Tuple[int, int]:
    """Return the width and height that mmdet would give an image."""
    if not how:
        return size
    target = how['width'], how['height']
    if not how['keep_ratio']:
        return target
    scale = min(
        max(target) / max(size),
        min(target) / min(size))
    width, height = (int(side * scale + 0.5) for side in size)
    return max(width, 1), max(height, 1)


def resize(image: Image.Image, size: Tuple[int, int]) -> Image.Image:
    """Interpolate between the four nearest pixels, as OpenCV does.

    Pillow's own resizing looks at more of them when it makes an image
    smaller, and detectors were trained on what OpenCV makes.
    """
    across, down = np.divide(image.size, size)
    return image.transform(size, Image.Transform.AFFINE,
                           (across, 0, 0, 0, down, 0),
                           Image.Resampling.BILINEAR)


def read_image(path: Path) -> Image.Image:
    """Read an image in RGB, upright.

    Raises:
        Failure: If it cannot be read.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith('I'):
                # 16 bits a pixel.
                image = Image.fromarray(
                    (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            return image.convert('RGB')
    except (OSError, SyntaxError, ValueError,
            Image.DecompressionBombError) as error:
        raise Failure(f'{path}: cannot be read: {error}') from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split('\n')[0]


def _last_line(error: Exception) -> str:
    return str(error).strip().split('\n')[-1]
