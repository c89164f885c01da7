"""Whether a self-contained graph finds what mmdet finds."""
import copy
import logging
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
import onnx
import torch
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

from ..graphs.builder import with_outputs
from ..graphs.detector import GraphDetector
from ..graphs.heads import dense_head
from ..graphs.network import IMAGE, DetectorNetwork
from ..graphs.session import Graph
from .assembly import NETWORK
from .metadata import OUTPUTS
from .preprocessing import LIMITS, Pipeline

#: What boxes, in pixels, and scores may differ by.
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-2, 1e-4
#: What a value of a map may differ by, relative to the largest.
UNIT_TOLERANCE = 1e-3
# Where boxes overlap by the threshold, or an input of a layer is between two
# levels, rounding errors decide.
_SHARE = 0.1
# Raw outputs of such spreads, in turn until there are boxes. The first gives
# plenty, unless a second stage finds no object in what is noise to it. With
# larger ones many scores would be 1 and in no order.
_SPREADS = (2., 4.)


@torch.no_grad()
def check_boxes(written: onnx.ModelProto, path: str, detector: nn.Module,
                config: Mapping[str, Any], pipeline: Pipeline) -> None:
    """Compare a graph with mmdet, before and after the network.

    What the network computes of images of noise is compared with what it
    computes alone; boxes are those of noise in the place of its outputs, of
    which there are many, whatever it has learned.

    Args:
        written: The self-contained graph.
        path: File of the graph of the network alone.
        detector: The detector; it is not changed.
        config: The model's part of its config.
        pipeline: What its test pipeline does to an image.

    Raises:
        LCQError: If they find different boxes.
    """
    size = DetectorNetwork(detector).size
    preprocessor: Any = detector.data_preprocessor
    if preprocessor.pad_size_divisor > 1:
        size = size[0] - 3, size[1] - 5
    reference = GraphDetector(copy.deepcopy(detector), path, config)
    head = dense_head(reference.detector)
    if not hasattr(head, 'loss_cls'):
        # mmdet 3.3 looks for it in all heads; that of SSD has none.
        head.loss_cls = nn.Identity()
    images = torch.randint(
        256, (2, *size, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0))
    data = prepare(images, detector, pipeline)
    values = reference._network(data['inputs'])
    names = [f'{NETWORK}/{name}' for name in reference._names]
    inner = Graph(with_outputs(written, names)[0], [IMAGE], names)
    for name, value, found in zip(names, values, inner(images)):
        unit = value.abs().max().clamp(min=1e-6)
        differs = (value - found).abs() > UNIT_TOLERANCE * unit
        if differs.double().mean() > _SHARE:
            raise LCQError(f'{name}: differs between the graph and that of '
                           'the network alone')

    height, width = data['data_samples'][0].img_shape
    limits = torch.tensor([width, height, width, height]).float()
    after = after_network(written, reference._names)
    for spread in _SPREADS:
        generator = torch.Generator().manual_seed(0)
        noise = [
            torch.randn(value.shape, generator=generator) * spread
            for value in values
        ]
        if _compare(
                after(limits, *noise),
                reference.detect([value.clone() for value in noise],
                                 data['data_samples'])):
            return
    print_log(
        'LCQ: none of the raw outputs that were tried gives a box, so the '
        "graph's boxes could not be compared with mmdet's", 'current',
        logging.WARNING)


def after_network(model: onnx.ModelProto, names: Sequence[str]) -> Graph:
    """Cut off what is before the outputs of the network.

    Args:
        model: A self-contained graph.
        names: Names of the network's outputs.

    Returns:
        A graph of ``limits`` and these outputs.
    """
    names = [LIMITS, *(f'{NETWORK}/{name}' for name in names)]
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    copied.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names)
    return Graph(copied, names, OUTPUTS)


def prepare(images: Tensor, detector: Any,
            pipeline: Pipeline) -> Dict[str, Any]:
    """Prepare images as mmdet does, without resizing.

    Args:
        images: Red, green and blue, uint8, (N, H, W, 3).
        detector: With the data preprocessor.
        pipeline: With what pads images.
    """
    inputs, samples = [], []
    for image in images.flip(-1).numpy():
        found = dict(img=image, img_shape=image.shape[:2])
        for pad in pipeline.pads:
            found = TRANSFORMS.build(dict(type='Pad', **pad))(found)
        pixels = np.ascontiguousarray(found['img'].transpose(2, 0, 1))
        inputs.append(torch.from_numpy(pixels))
        samples.append(
            DetDataSample(
                metainfo=dict(
                    img_shape=found['img_shape'],
                    ori_shape=image.shape[:2],
                    scale_factor=(1., 1.))))
    return detector.data_preprocessor(
        dict(inputs=inputs, data_samples=samples))


def unmatched(dets: Tensor, labels: Tensor, expected: InstanceData) -> int:
    """Count boxes of one image that the other side does not have.

    Args:
        dets: Boxes and scores, (K, 5).
        labels: (K), negative where there is no box.
        expected: What mmdet found.
    """
    dets, labels = dets[labels >= 0], labels[labels >= 0]
    boxes = expected.bboxes
    same = ((dets[:, None, :4] - boxes).abs() <= BOX_TOLERANCE +
            1e-5 * boxes.abs()).all(-1)
    same &= (dets[:, None, 4] - expected.scores).abs() <= SCORE_TOLERANCE
    same &= labels[:, None] == expected.labels
    return max(
        int((~same.any(0)).sum()),
        int((~same.any(1)).sum()), abs(len(dets) - len(boxes)))


def _compare(found: Tuple[Tensor, ...],
             samples: Sequence[DetDataSample]) -> int:
    """Compare boxes; return how many mmdet found."""
    expected: List[InstanceData] = [
        sample.pred_instances for sample in samples
    ]
    total = sum(len(instances) for instances in expected)
    wrong = sum(map(unmatched, *found, expected))
    if wrong > _SHARE * total:
        raise LCQError(f'{wrong} of {total} boxes differ between the graph '
                       'and mmdet')
    return total
