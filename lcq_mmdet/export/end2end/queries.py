"""Candidates of heads that see queries."""
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from .dense import Candidates, DenseCandidates
from .selection import clip, pick
from .suppression import Suppression


class QueryCandidates(DenseCandidates):
    """Queries, each with scores and one box in shares of the image."""

    def suppression(self, where: str) -> Suppression:
        return Suppression(None, self.max_per_img)

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
