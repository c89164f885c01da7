"""The generated data set as mmdetection reads it."""
import colorsys

from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS

from .shapes import CLASSES


def _palette(num_colours: int) -> list[tuple[int, int, int]]:
    """Return RGB colours in [0, 255] of evenly spaced hues."""
    palette = []
    for index in range(num_colours):
        red, green, blue = colorsys.hsv_to_rgb(index / num_colours, 0.9, 0.9)
        palette.append((int(255 * red), int(255 * green), int(255 * blue)))
    return palette


@DATASETS.register_module()
class ToyCocoDataset(CocoDataset):
    """Generated images of simple shapes, in COCO's format.

    ``lcq make-toy-coco`` writes the files.
    """

    METAINFO = dict(classes=CLASSES, palette=_palette(len(CLASSES)))
