"""From an image, as it comes from a decoder, to the input of a network."""
from typing import (Any, Dict, List, Mapping, NamedTuple, Optional, Sequence,
                    Tuple)

import onnx
import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor

from lcq_mmdet.datasets.configs import innermost, type_name
from lcq_mmdet.errors import LCQError

#: Names of what the graph gives: the network's input, and (4) width, height,
#: width and height in pixels of what boxes are clipped to, float.
PREPARED, LIMITS = 'prepared', 'limits'
# What does not change pixels; what it packs is not part of the image.
_NEUTRAL = ('LoadImageFromFile', 'LoadImageFromNDArray', 'LoadAnnotations',
            'LoadEmptyAnnotations', 'PackDetInputs')
# Options that change pixels, and what they must be.
_ONLY: Dict[str, Dict[str, Any]] = dict(
    LoadImageFromFile=dict(color_type='color', to_float32=False),
    LoadImageFromNDArray=dict(color_type='color', to_float32=False),
    Resize=dict(backend='cv2'))


class Pipeline(NamedTuple):
    """What a test pipeline does to the pixels of an image, in this order.

    Attributes:
        resize: Arguments of ``Resize``, if there is one.
        pads: Arguments of each ``Pad``.
    """
    resize: Optional[Mapping[str, Any]]
    pads: List[Mapping[str, Any]]


def find_test_data(cfg: Config) -> Mapping[str, Any]:
    """Return a config's innermost test data set, the first of several.

    Raises:
        LCQError: If there is none, or several prepare images differently.
    """
    key = 'test_dataloader'
    found = list(innermost(key, cfg.get(key) or {}))
    pipelines = [dataset.get('pipeline') for _, dataset in found]
    if not cfg.get(key) or not found:
        raise LCQError(f'{key}: is missing; its pipeline says how images are '
                       'resized')
    if any(pipeline != pipelines[0] for pipeline in pipelines):
        raise LCQError(f'{key}: its data sets have different pipelines, and '
                       'a graph has one; leave one data set in it')
    return found[0][1]


def read_pipeline(transforms: Sequence[Mapping[str, Any]]) -> Pipeline:
    """Find out what a graph, and who feeds it, must do to an image.

    Raises:
        LCQError: If a transform changes pixels in another way.
    """
    pads: List[Mapping[str, Any]] = []
    resize: Optional[Mapping[str, Any]] = None
    for transform in transforms:
        name = type_name(transform)
        options = {key: transform[key] for key in transform if key != 'type'}
        for key, value in _ONLY.get(name, {}).items():
            if options.get(key, value) != value:
                raise LCQError(f'--end2end: the test pipeline has a {name} '
                               f'with {key}={options[key]!r}; it must be '
                               f'{value!r}')
        if name == 'Resize' and resize is None and not pads:
            resize = options
        elif name == 'Pad':
            pads.append(options)
        elif name not in _NEUTRAL:
            raise LCQError(f'--end2end: the test pipeline has {name!r}; '
                           'only one Resize and then Pad can change an image')
    return Pipeline(resize, pads)


def resize_metadata(pipeline: Pipeline) -> Optional[Mapping[str, Any]]:
    """Say how an image is resized before the graph gets it.

    Raises:
        LCQError: If the pipeline has no fixed size for it.
    """
    if pipeline.resize is None:
        return None
    scale = pipeline.resize.get('scale')
    if isinstance(scale, int):
        scale = scale, scale
    if not scale or not all(isinstance(side, int) for side in scale):
        raise LCQError(f'--end2end: the test pipeline has a Resize with '
                       f'scale={scale!r}; it must be (width, height)')
    return dict(
        width=scale[0],
        height=scale[1],
        keep_ratio=bool(pipeline.resize.get('keep_ratio', False)),
        interpolation=pipeline.resize.get('interpolation', 'bilinear'))


def preprocessing(preprocessor: Any, pipeline: Pipeline) -> onnx.ModelProto:
    """Write what happens to an image between a decoder and the network.

    Args:
        preprocessor: The detector's data preprocessor.
        pipeline: What the test pipeline does; resizing is left to others.

    Returns:
        A graph from ``image``, uint8, (N, H, W, 3), red, green and blue, to
        ``prepared`` and ``limits``.

    Raises:
        LCQError: If it is of another kind.
    """
    if not isinstance(preprocessor, ImgDataPreprocessor):
        raise LCQError(f'{type(preprocessor).__name__}: cannot be part of a '
                       'graph; DetDataPreprocessor can')
    lines = ['height = Shape <start = 1, end = 2> (image)',
             'width = Shape <start = 2, end = 3> (image)',
             'channels_last = Cast <to = 1> (image)',
             'pixels = Transpose <perm = [0, 3, 1, 2]> (channels_last)']
    value, size = 'pixels', ('height', 'width')
    for number, pad in enumerate(pipeline.pads):
        value, size = _pad_as_pipeline(lines, value, size, pad, number)
    lines.append(f'sides = Concat <axis = 0> ({size[1]}, {size[0]}, '
                 f'{size[1]}, {size[0]})')
    lines.append(f'{LIMITS} = Cast <to = 1> (sides)')
    if not preprocessor._channel_conversion:
        # Decoders give red first; mmcv loads images with blue first.
        lines.append('blue_first = Constant <value = int64[3] {2, 1, 0}> ()')
        lines.append(f'reordered = Gather <axis = 1> ({value}, blue_first)')
        value = 'reordered'
    if preprocessor._enable_normalize:
        for name, tensor in (('mean', preprocessor.mean),
                             ('std', preprocessor.std)):
            lines.append(f'{name} = Constant <value = '
                         f'{_floats(tensor)}> ()')
        lines.append(f'centred = Sub ({value}, mean)')
        lines.append('normalized = Div (centred, std)')
        value = 'normalized'
    size_divided = _multiples(lines, size, preprocessor.pad_size_divisor,
                              'batch')
    _pad(lines, value, size, size_divided, preprocessor.pad_value, PREPARED)
    return parse(f'preprocess (uint8[N, H, W, 3] image) => '
                 f'(float[N, 3, h, w] {PREPARED}, float[4] {LIMITS})', lines)


def parse(signature: str, lines: Sequence[str]) -> onnx.ModelProto:
    """Make a model of a graph's signature and statements."""
    body = '\n  '.join(lines)
    return onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>\n'
                                   f'{signature}\n{{\n  {body}\n}}')


def _pad_as_pipeline(lines: List[str], value: str, size: Tuple[str, str],
                     options: Mapping[str, Any],
                     number: int) -> Tuple[str, Tuple[str, str]]:
    """Write a ``Pad`` of a pipeline; return what is padded, and its size."""
    color = options.get('pad_val', 0)
    if isinstance(color, Mapping):
        color = color.get('img', 0)
    if not isinstance(color, (int, float)):
        if len(set(color)) > 1:
            raise LCQError(f'--end2end: the test pipeline has a Pad with '
                           f'pad_val={color!r}; it must be one value for all '
                           'channels')
        color = color[0]
    if options.get('padding_mode', 'constant') != 'constant':
        raise LCQError('--end2end: the test pipeline has a Pad with '
                       f'padding_mode={options["padding_mode"]!r}; it must '
                       "be 'constant'")
    target = size
    if options.get('pad_to_square'):
        lines.append(f'side_{number} = Max ({size[0]}, {size[1]})')
        target = f'side_{number}', f'side_{number}'
    if options.get('size_divisor'):
        target = _multiples(lines, target, options['size_divisor'],
                            str(number))
    elif options.get('size'):
        target = f'tall_{number}', f'wide_{number}'
        for old, new, side in zip(size, target, reversed(options['size'])):
            lines.append(f'least_{new} = Constant <value = int64[1] '
                         f'{{{int(side)}}}> ()')
            lines.append(f'{new} = Max ({old}, least_{new})')
    padded = f'padded_{number}'
    _pad(lines, value, size, target, color, padded)
    return padded, target


def _multiples(lines: List[str], size: Tuple[str, str], divisor: int,
               name: str) -> Tuple[str, str]:
    """Write how both sides are rounded up to multiples."""
    if divisor <= 1:
        return size
    lines += [f'divisor_{name} = Constant <value = int64[1] '
              f'{{{int(divisor)}}}> ()',
              f'below_{name} = Constant <value = int64[1] '
              f'{{{int(divisor) - 1}}}> ()']
    for side in range(2):
        axis = f'{name}_{side}'
        lines += [f'sum_{axis} = Add ({size[side]}, below_{name})',
                  f'count_{axis} = Div (sum_{axis}, divisor_{name})',
                  f'whole_{axis} = Mul (count_{axis}, divisor_{name})']
    return f'whole_{name}_0', f'whole_{name}_1'


def _pad(lines: List[str], value: str, size: Tuple[str, str],
         target: Tuple[str, str], color: float, output: str) -> None:
    """Write padding at the right and at the bottom."""
    if size == target:
        lines.append(f'{output} = Identity ({value})')
        return
    lines += [f'below_{output} = Sub ({target[0]}, {size[0]})',
              f'right_{output} = Sub ({target[1]}, {size[1]})',
              f'none_{output} = Constant <value = int64[6] '
              '{0, 0, 0, 0, 0, 0}> ()',
              f'pads_{output} = Concat <axis = 0> (none_{output}, '
              f'below_{output}, right_{output})',
              f'color_{output} = Constant <value = float '
              f'{{{float(color)!r}}}> ()',
              f'{output} = Pad ({value}, pads_{output}, color_{output})']


def _floats(tensor: torch.Tensor) -> str:
    values = ', '.join(repr(value) for value in tensor.flatten().tolist())
    return f'float[1, {tensor.numel()}, 1, 1] {{{values}}}'
