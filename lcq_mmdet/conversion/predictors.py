"""Which layers are the last ones: those that give a detector's predictions."""
from fnmatch import fnmatchcase

from mmcv.cnn import ConvModule
from torch import nn

#: Names, indices left out, of the last layers of mmdet's heads.
LAST_LAYERS = ('*cls', '*reg', '*obj', '*iou', '*centerness', '*out', '*pred',
               '*score', '*logits', '*kernel', '*coeff', '*offset', '*_embed',
               '*_convs', '*_branches', '*_refine', 'heatmap_head', 'wh_head',
               'offset_head', 'controller', 'fc')
#: The same of deformable convolution and attention, in any module: they
#: predict where to sample.
SAMPLING_LAYERS = ('conv_offset', '*_conv_offset', 'sampling_offsets')


def is_last_layer(model: nn.Module, name: str) -> bool:
    """Tell whether a layer's output is a prediction, by where it is.

    It is if its name is among :data:`SAMPLING_LAYERS`, or if it lies in a
    module with ``head`` in its name, its own is among :data:`LAST_LAYERS`,
    and no normalization, activation or other layer follows, which is to say
    that it is in no ConvModule and the last layer of its Sequential.

    Args:
        model: The model that the layer is in.
        name: Qualified name of the layer.
    """
    path = name.split('.')
    own = next((p for p in reversed(path) if not p.isdigit()), '')
    if _among(own, SAMPLING_LAYERS):
        return True
    if not any('head' in part for part in path) or not _among(
            own, LAST_LAYERS):
        return False
    parent = model.get_submodule('.'.join(path[:-1]))
    if isinstance(parent, nn.Sequential):
        return path[-1] == str(len(parent) - 1)
    return not isinstance(parent, ConvModule)


def _among(name: str, patterns: tuple) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
