"""The part of a detector that a graph computes, and what mmdet keeps doing.

A graph takes the preprocessed image and gives what the heads compute of it,
raw. Decoding, non-maximum suppression and everything else that mmdet does with
that is left to mmdet. A detector with two stages has more inputs, the features
that mmdet pools for the regions of each head, and the outputs of these heads.
"""
from functools import cached_property
from typing import Any, Dict, List, Sequence, Tuple

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from torch import Tensor, nn

from .heads import check_supported, dense_head, has_queries, region_heads

IMAGE = 'image'
_FEATURE, _HEAD = 'feature', 'head'
# The first is large enough for feature pyramids, the second for what shrinks
# a map to a single pixel by layers without padding, as SSD does.
_SIZES = ((128, 192), (384, 512))


class DetectorNetwork(nn.Module):
    """Compute the raw outputs of a detector as a flat tuple.

    Args:
        detector: A detector with one dense head, and heads of later stages
            that :func:`~lcq_mmdet.export.graphs.heads.region_heads` lists.

    Attributes:
        inputs: Names of the inputs.

    Raises:
        LCQError: If the detector is of another kind.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        check_supported(detector)
        self.detector: Any = detector
        self.region_heads = region_heads(detector)
        self.inputs = [IMAGE, *(head.input for head in self.region_heads)]
        # A new module is in training mode, which is not the detector's.
        self.training = detector.training

    @property
    def outputs(self) -> List[str]:
        """Names of the outputs.

        ``head.I.L`` is output I of the dense head at level L of the pyramid,
        or of its queries, with L = 0; with a second stage there are
        ``feature.L`` and ``second_stage...``.
        """
        return self._example[1]

    @property
    def size(self) -> Tuple[int, int]:
        """Height and width of a small image that the network can take."""
        return self._example[0]

    @cached_property
    def _example(self) -> Tuple[Tuple[int, int], List[str]]:
        """Find the size of a small image, and what comes out for it."""
        with torch.no_grad():
            for size in _SIZES[:-1]:
                try:
                    return size, list(self.compute(*self.example(*size)))
                except RuntimeError:
                    continue
            size = _SIZES[-1]
            return size, list(self.compute(*self.example(*size)))

    def example(self, height: int, width: int) -> Tuple[Tensor, ...]:
        """Make inputs for two images of noise, ``height`` by ``width``."""
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(2, 3, height, width, generator=generator)]
        for head in self.region_heads:
            inputs.append(
                torch.randn(
                    3,
                    head.extractor.out_channels,
                    *head.module.roi_feat_size,
                    generator=generator))
        return tuple(inputs)

    def pool(self, image: Tensor) -> Tuple[Tensor, ...]:
        """Pool features of regions for each head; nothing with one stage.

        All heads get the regions that the first stage proposes, also those
        to which mmdet gives refined ones.

        Args:
            image: Preprocessed images, shape (batch, 3, height, width).
        """
        if not self.region_heads:
            return ()
        samples = _samples(image)
        maps = self.detector.extract_feat(image)
        proposals = self.detector.rpn_head.predict(
            maps, samples, rescale=False)
        whole = image.new_tensor([[0, 0, *image.shape[:1:-1]]])
        regions = bbox2roi([
            get_box_tensor(found.bboxes) if len(found) else whole
            for found in proposals
        ])
        return tuple(
            head.extractor(maps[:head.extractor.num_inputs], regions)
            for head in self.region_heads)

    def compute(self, image: Tensor, *pooled: Tensor) -> Dict[str, Tensor]:
        """Compute the outputs by name.

        Args:
            image: Preprocessed images, shape (batch, 3, height, width).
            *pooled: Features of regions for each head that takes them, shape
                (regions, channels, height, width).
        """
        features = self.detector.extract_feat(image)
        found: Dict[str, Tensor] = {}
        for index, levels in enumerate(self._dense(image, features)):
            for level, value in enumerate(levels):
                found[f'{_HEAD}.{index}.{level}'] = value
        if self.region_heads:
            for level, value in enumerate(features):
                found[f'{_FEATURE}.{level}'] = value
        for head, values in zip(self.region_heads, pooled):
            found.update(zip(head.outputs, head.compute(values)))
        return found

    def _dense(self, image: Tensor, features: Any) -> Any:
        """Compute what the dense head gives: maps, or rows of queries."""
        if not has_queries(self.detector):
            return dense_head(self.detector)(features)
        found = self.detector.forward_transformer(features, _samples(image))
        # Boxes are those of the last layer of the decoder.
        return self.detector.bbox_head(found['hidden_states'][-1:])

    def forward(self, *inputs: Tensor) -> Tuple[Tensor, ...]:
        """Compute the outputs in the order of their names."""
        return tuple(self.compute(*inputs).values())


def _samples(image: Tensor) -> List[DetDataSample]:
    """Make the samples of images without padding."""
    size = tuple(image.shape[2:])
    return [
        DetDataSample(
            metainfo=dict(
                img_shape=size,
                ori_shape=size,
                batch_input_shape=size,
                scale_factor=(1., 1.))) for _ in image
    ]


def dense_outputs(names: Sequence[str],
                  values: Sequence[Any]) -> Tuple[List[Any], ...]:
    """Group the outputs of the dense head as its forward gives them."""
    grouped: Dict[str, List[Any]] = {}
    for name, value in zip(names, values):
        kind, _, rest = name.partition('.')
        if kind == _HEAD:
            grouped.setdefault(rest.partition('.')[0], []).append(value)
    return tuple(grouped.values())


def features(names: Sequence[str], values: Sequence[Any]) -> Tuple[Any, ...]:
    """Select the feature maps among the outputs."""
    return tuple(value for name, value in zip(names, values)
                 if name.startswith(f'{_FEATURE}.'))
