"""Candidates of heads that see whole feature maps, family by family.

Each module takes ``limits``, the (4) width, height, width and height that
boxes are clipped to, and the raw outputs of the head, and gives boxes, (N, P,
4), in pixels, scores, (N, P), and labels, (N, P). What is no candidate has a
negative score. Priors and decoding are mmdet's own.
"""
from typing import (Any, Callable, Dict, List, Mapping, Optional, Sequence,
                    Tuple, Type)

import torch
from mmdet.models.dense_heads import (DETRHead, GFLHead, RPNHead, RTMDetHead,
                                      YOLOV3Head, YOLOXHead)
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules.coders import (DeltaXYWHBBoxCoder,
                                              DistancePointBBoxCoder,
                                              TBLRBBoxCoder, YOLOBBoxCoder)
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

from ..graphs.network import dense_outputs
from .selection import Picked, by_priors, clip, pick, take
from .suppression import NOTHING

Candidates = Tuple[Tensor, Tensor, Tensor]
_CODERS = (DeltaXYWHBBoxCoder, DistancePointBBoxCoder, TBLRBBoxCoder,
           YOLOBBoxCoder)


class DenseCandidates(nn.Module):
    """Base of all.

    Args:
        head: The dense head.
        test_cfg: Its settings.
        names: Names of its outputs.
    """

    def __init__(self, head: Any, test_cfg: Mapping[str, Any],
                 names: Sequence[str]) -> None:
        super().__init__()
        self.head, self.test_cfg, self.names = head, test_cfg, names
        self.nms_pre = test_cfg.get('nms_pre', -1)
        self.score_thr = test_cfg.get('score_thr', 0)

    def maps(self, outputs: Sequence[Tensor]) -> List[List[Tensor]]:
        """Group the outputs as the head gives them."""
        return list(dense_outputs(self.names, outputs))

    def priors(self, maps: Sequence[Tensor], **options: Any) -> List[Tensor]:
        """Make the priors of all maps, shape (M, 4) or (M, 2) each."""
        return self.head.prior_generator.grid_priors(
            [level.shape[-2:] for level in maps],
            dtype=maps[0].dtype,
            device=maps[0].device,
            **options)

    def num_priors(self, level: int) -> int:
        """Count the priors of a place."""
        return self.head.prior_generator.num_base_priors[level]

    def decode(self, priors: Tensor, deltas: Tensor,
               limits: Tensor) -> Tensor:
        """Decode boxes, (N, k, 4), and clip them if the coder does so."""
        boxes = self.head.bbox_coder.decode(
            priors.flatten(0, 1), deltas.flatten(0, 1))
        boxes = boxes.reshape(deltas.shape[0], -1, 4)
        if getattr(self.head.bbox_coder, 'clip_border', False):
            return clip(boxes, limits)
        return boxes

    def sized(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, negative where a box is too small."""
        smallest = self.test_cfg.get('min_bbox_size', -1)
        if smallest < 0:
            return scores
        sides = boxes[..., 2:] - boxes[..., :2]
        return torch.where((sides > smallest).all(-1), scores, NOTHING)


class PyramidCandidates(DenseCandidates):
    """The route that most heads with anchors or points take."""

    def forward(self, limits: Tensor, *outputs: Tensor) -> Candidates:
        classes, deltas, *rest = self.maps(outputs)
        factors = rest[0] if rest else [None] * len(classes)
        found = [
            self._level(index, limits, *level) for index, level in enumerate(
                zip(classes, deltas, factors, self.priors(classes)))
        ]
        boxes, scores, labels = (torch.cat(part, 1) for part in zip(*found))
        return boxes, self.sized(boxes, scores), labels

    def _level(self, index: int, limits: Tensor, classes: Tensor,
               deltas: Tensor, factors: Any, priors: Tensor) -> Candidates:
        num_priors = self.num_priors(index)
        picked = self.pick(
            by_priors(classes, num_priors, self.head.cls_out_channels))
        deltas = take(
            by_priors(deltas, num_priors, deltas.shape[1] // num_priors),
            picked.priors)
        boxes = self.boxes(index, priors[picked.priors], deltas, limits)
        scores = picked.values
        if factors is not None:
            factor = take(by_priors(factors, num_priors, 1), picked.priors)
            scores = scores * factor[..., 0].sigmoid()
        scores = torch.where(self.good(picked), scores, NOTHING)
        return boxes, scores, self.labels(index, picked)

    def pick(self, classes: Tensor) -> Picked:
        """Pick by classification scores, which the values then are."""
        if self.head.use_sigmoid_cls:
            picked = pick(classes, self.nms_pre)
            return picked._replace(values=picked.values.sigmoid())
        # The last class is the background.
        return pick(classes.softmax(2)[:, :, :-1], self.nms_pre)

    def good(self, picked: Picked) -> Tensor:
        """Tell which scores are high enough."""
        return picked.values > self.score_thr

    def labels(self, index: int, picked: Picked) -> Tensor:
        """Return the classes; boxes of one suppress each other."""
        return picked.classes

    def boxes(self, index: int, priors: Tensor, deltas: Tensor,
              limits: Tensor) -> Tensor:
        """Decode what the head gave for the picked priors."""
        return self.decode(priors, deltas, limits)


class RegionCandidates(PyramidCandidates):
    """Regions, of any score; the groups are the levels of the pyramid."""

    def good(self, picked: Picked) -> Tensor:
        return picked.values > NOTHING

    def labels(self, index: int, picked: Picked) -> Tensor:
        return torch.full_like(picked.classes, index)


class DistributionCandidates(PyramidCandidates):
    """Heads that give a distribution of each side's distance (GFL)."""

    def boxes(self, index: int, priors: Tensor, deltas: Tensor,
              limits: Tensor) -> Tensor:
        head = self.head
        sides = head.integral(deltas) * head.prior_generator.strides[index][0]
        sides = sides.reshape(deltas.shape[0], -1, 4)
        centers = (priors[..., :2] + priors[..., 2:]) / 2
        return self.decode(centers, sides, limits)


class ObjectnessCandidates(DenseCandidates):
    """One class a point, and how sure it is that there is one (YOLOX)."""

    def forward(self, limits: Tensor, *outputs: Tensor) -> Candidates:
        classes, deltas, objects = (
            torch.cat([level.flatten(2) for level in kind], 2)
            for kind in self.maps(outputs))
        priors = torch.cat(
            self.priors(self.maps(outputs)[0], with_stride=True))
        boxes = self.head._bbox_decode(priors, deltas.transpose(1, 2))
        best, labels = classes.max(1)
        scores = best.sigmoid() * objects[:, 0].sigmoid()
        good = scores >= self.score_thr
        return boxes, torch.where(good, scores, NOTHING), labels


class YOLOCandidates(DenseCandidates):
    """Anchors with everything in one map (YOLOv3)."""

    def forward(self, limits: Tensor, *outputs: Tensor) -> Candidates:
        maps, = self.maps(outputs)
        head = self.head
        levels, strides = [], []
        for index, level in enumerate(maps):
            values = by_priors(level, self.num_priors(index), head.num_attrib)
            # (N, M, attributes), priors of one place beside each other.
            values = values.permute(0, 3, 1, 2).flatten(1, 2)
            levels.append(values)
            strides.append(
                torch.full_like(values[0, :, :1], head.featmap_strides[index]))
        values, priors = torch.cat(levels, 1), torch.cat(self.priors(maps))
        objects = values[..., 4].sigmoid()
        classes = values[..., 5:].sigmoid()
        confident = self.test_cfg.get('conf_thr', -1)
        if confident > 0:
            classes = torch.where((objects >= confident).unsqueeze(-1),
                                  classes, NOTHING)
        # Here, all priors together count as those of one level.
        picked = pick(classes.transpose(1, 2).unsqueeze(1), self.nms_pre)
        deltas = take(values[..., :4].transpose(1, 2).unsqueeze(1),
                      picked.priors)
        deltas = torch.cat([deltas[..., :2].sigmoid(), deltas[..., 2:]], -1)
        boxes = head.bbox_coder.decode(
            priors[picked.priors].flatten(0, 1), deltas.flatten(0, 1),
            torch.cat(strides)[picked.priors].flatten(0, 1))
        boxes = boxes.reshape(deltas.shape[0], -1, 4)
        scores = picked.values * objects.gather(1, picked.priors)
        scores = torch.where(picked.values > self.score_thr, scores, NOTHING)
        return boxes, self.sized(boxes, scores), picked.classes


class QueryCandidates(DenseCandidates):
    """Queries, each with scores and one box in shares of the image."""

    def forward(self, limits: Tensor, *outputs: Tensor) -> Candidates:
        (values, ), (boxes, ) = self.maps(outputs)
        count = self.test_cfg.get('max_per_img', values.shape[1])
        if self.head.loss_cls.use_sigmoid:
            picked = pick(values.sigmoid().transpose(1, 2).unsqueeze(1), count)
            boxes = boxes.gather(
                1, picked.priors.unsqueeze(-1).expand(-1, -1, 4))
            scores, labels = picked.values, picked.classes
        else:
            # The last class is the background.
            scores, labels = values.softmax(2)[..., :-1].max(2)
        boxes = clip(bbox_cxcywh_to_xyxy(boxes) * limits, limits)
        return boxes, scores, labels


# A head goes the way of the method that it has or inherits.
_GENERAL = (BaseDenseHead.predict_by_feat,
            BaseDenseHead._predict_by_feat_single,
            BaseDenseHead._bbox_post_process)
_FAMILIES: Dict[Tuple[Optional[Callable[..., Any]], ...],
                Type[DenseCandidates]] = {
    _GENERAL: PyramidCandidates,
    (_GENERAL[0], RTMDetHead._predict_by_feat_single,
     RTMDetHead._bbox_post_process): PyramidCandidates,
    (_GENERAL[0], GFLHead._predict_by_feat_single, _GENERAL[2]):
    DistributionCandidates,
    (_GENERAL[0], RPNHead._predict_by_feat_single, RPNHead._bbox_post_process):
    RegionCandidates,
    (YOLOXHead.predict_by_feat, _GENERAL[1], YOLOXHead._bbox_post_process):
    ObjectnessCandidates,
    (YOLOV3Head.predict_by_feat, _GENERAL[1], _GENERAL[2]): YOLOCandidates,
    (DETRHead.predict_by_feat, DETRHead._predict_by_feat_single, None):
    QueryCandidates,
}


def dense_candidates(head: Any, test_cfg: Mapping[str, Any],
                     names: Sequence[str]) -> DenseCandidates:
    """Choose the module for a head.

    Args:
        head: The dense head.
        test_cfg: Its settings.
        names: Names of the graph's outputs.

    Raises:
        LCQError: If there is none; names the head.
    """
    kind = type(head)
    family = _FAMILIES.get(
        (getattr(kind, 'predict_by_feat', None),
         getattr(kind, '_predict_by_feat_single', None),
         getattr(kind, '_bbox_post_process', None)))
    custom = getattr(
        getattr(head, 'loss_cls', None), 'custom_cls_channels', False)
    coder = getattr(head, 'bbox_coder', None)
    is_known = coder is None or type(coder) in _CODERS
    if family is None or custom or not is_known:
        why = '' if is_known else f' with {type(coder).__name__}'
        raise LCQError(
            f'{kind.__name__}{why}: boxes of this head cannot be decoded in a '
            'graph; export without --end2end, and mmdet decodes them')
    return family(head, test_cfg, names)
