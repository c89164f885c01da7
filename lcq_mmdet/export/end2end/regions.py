"""The second stage: features of regions, and boxes made of them.

Shape shorthand: N images, R regions of each, C classes.
"""
from typing import Any, Mapping, Sequence

import torch
from mmcv.ops import RoIAlign, roi_align
from mmdet.models.roi_heads.bbox_heads.bbox_head import BBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

from .dense import Candidates
from .families import CODERS
from .selection import clip
from .suppression import NOTHING

_LIBRARY = torch.library.Library('lcq_mmdet', 'FRAGMENT')
_LIBRARY.define('roi_align(Tensor maps, Tensor regions, int height, int width,'
                ' float scale, int samples) -> Tensor')


def _align(maps: Tensor, regions: Tensor, height: int, width: int,
           scale: float, samples: int) -> Tensor:
    return roi_align(maps, regions, (height, width), scale, samples, 'avg',
                     True)


def _write_align(g: Any, maps: Any, regions: Any, height: Any, width: Any,
                 scale: Any, samples: Any) -> Any:
    column = g.op('Constant', value_t=torch.tensor(0))
    corners = g.op('Constant', value_t=torch.arange(1, 5))
    images = g.op(
        'Cast', g.op('Gather', regions, column, axis_i=1), to_i=7)
    boxes = g.op('Gather', regions, corners, axis_i=1)
    return g.op(
        'RoiAlign',
        maps,
        boxes,
        images,
        coordinate_transformation_mode_s='half_pixel',
        mode_s='avg',
        output_height_i=int(height.node().t('value')),
        output_width_i=int(width.node().t('value')),
        sampling_ratio_i=int(samples.node().t('value')),
        spatial_scale_f=float(scale.node().t('value'))).setType(maps.type())


_LIBRARY.impl('roi_align', _align, 'CompositeExplicitAutograd')
torch.onnx.register_custom_op_symbolic('lcq_mmdet::roi_align', _write_align,
                                       17)


class RegionPooling(nn.Module):
    """Pool the features of each region from the level of its size.

    Args:
        extractor: The extractor of the second stage.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, regions: Tensor, *maps: Tensor) -> Tensor:
        """Pool.

        Args:
            regions: Boxes and scores, (N, R, 5).
            *maps: Feature maps, finest first.

        Returns:
            Features, (N * R, channels, height, width).
        """
        maps = maps[:self.extractor.num_inputs]
        images = torch.arange(regions.shape[0]).to(regions)
        images = images[:, None, None].expand(-1, regions.shape[1], 1)
        rows = torch.cat([images, regions[..., :4]], -1).flatten(0, 1)
        levels = self.extractor.map_roi_levels(rows, len(maps))
        places, pooled = [], []
        for index, layer in enumerate(self.extractor.roi_layers):
            place = (levels == index).nonzero()[:, 0]
            places.append(place)
            pooled.append(
                torch.ops.lcq_mmdet.roi_align(maps[index], rows[place],
                                              *layer.output_size,
                                              layer.spatial_scale,
                                              layer.sampling_ratio))
        # Back into the order of the regions.
        order = torch.cat(places)
        _, back = order.topk(order.shape[0], largest=False)
        return torch.cat(pooled)[back]


class RegionBoxes(nn.Module):
    """Boxes of the classes of each region.

    Args:
        head: The box head.
        test_cfg: Its settings.
    """

    def __init__(self, head: Any, test_cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.head, self.test_cfg = head, test_cfg

    def forward(self, limits: Tensor, regions: Tensor, is_region: Tensor,
                classes: Tensor, deltas: Tensor) -> Candidates:
        """Decode.

        Args:
            limits: What boxes are clipped to, (4).
            regions: Boxes and scores, (N, R, 5).
            is_region: Negative where a row is no region, (N, R).
            classes: Raw scores, (N * R, C + 1).
            deltas: (N * R, 4) or (N * R, 4 * C).

        Returns:
            Candidates, (N, R * C, ...).
        """
        head, num_images = self.head, regions.shape[0]
        scores = classes.softmax(-1)[:, :-1]
        num_classes = head.num_classes
        own = 1 if head.reg_class_agnostic else num_classes
        boxes = regions[..., :4].reshape(-1, 1, 4).expand(-1, own, 4)
        boxes = head.bbox_coder.decode(
            boxes.reshape(-1, 4), deltas.reshape(-1, 4))
        boxes = boxes.reshape(-1, own, 4).expand(-1, num_classes, 4)
        if head.bbox_coder.clip_border:
            boxes = clip(boxes, limits)
        good = (scores > self.test_cfg['score_thr']) & (
            is_region.reshape(-1, 1) >= 0)
        scores = torch.where(good, scores, NOTHING)
        labels = torch.arange(num_classes).expand(scores.shape[0], -1)
        return (boxes.reshape(num_images, -1, 4),
                scores.reshape(num_images, -1),
                labels.reshape(num_images, -1))


def check_second_stage(roi_head: Any) -> None:
    """Raise an ``LCQError`` unless a graph can hold a second stage."""
    problem = (
        type(roi_head).__name__ if isinstance(roi_head.bbox_head,
                                              nn.ModuleList) else
        type(roi_head.mask_head).__name__ if roi_head.with_mask else
        _head_problem(roi_head.bbox_head, roi_head.bbox_roi_extractor))
    if problem:
        raise LCQError(f'{problem}: this second stage cannot be part of a '
                       'graph; export without --end2end, and mmdet computes '
                       'it')


def _head_problem(head: Any, extractor: Any) -> str:
    """Name what of a box head cannot be part of a graph, if anything."""
    layers: Sequence[Any] = extractor.roi_layers
    if (type(head)._predict_by_feat_single is not
            BBoxHead._predict_by_feat_single or head.custom_cls_channels
            or type(head.bbox_coder) not in CODERS or not head.with_reg):
        return type(head).__name__
    if type(extractor) is not SingleRoIExtractor:
        return type(extractor).__name__
    if not all(
            type(layer) is RoIAlign and layer.aligned
            and layer.pool_mode == 'avg' for layer in layers):
        return f'{type(extractor).__name__}.roi_layer'
    return ''
