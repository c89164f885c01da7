"""Candidates of heads that tell how sure they are that there is an object."""
import torch
from torch import Tensor

from .dense import Candidates, DenseCandidates
from .selection import by_priors, pick, take
from .suppression import NOTHING


class ObjectnessCandidates(DenseCandidates):
    """One class a point, and how sure it is that there is one (YOLOX)."""
    # mmdet has no use for the key here.
    max_per_img = None

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
