"""Candidates of heads that see whole feature maps, family by family.

Each module takes ``limits``, the (4) width, height, width and height that
boxes are clipped to, and the raw outputs of the head, and gives boxes, (N, P,
4), in pixels, scores, (N, P), and labels, (N, P). What is no candidate has a
negative score. Priors and decoding are mmdet's own.
"""
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

from ..graphs.network import dense_outputs
from .selection import Picked, by_priors, clip, pick, take
from .suppression import NOTHING, Suppression, read_suppression

Candidates = Tuple[Tensor, Tensor, Tensor]


class DenseCandidates(nn.Module):
    """Base of all.

    Args:
        head: The dense head.
        test_cfg: Its settings.
        names: Names of its outputs.

    Raises:
        LCQError: If its settings cannot be in a graph.
    """
    # Elsewhere mmdet compares sizes of boxes that it has rescaled to the
    # image file.
    sizes_are_of_input = False

    def __init__(self, head: Any, test_cfg: Mapping[str, Any],
                 names: Sequence[str]) -> None:
        super().__init__()
        self.head, self.test_cfg, self.names = head, test_cfg, names
        self.nms_pre = test_cfg.get('nms_pre', -1)
        self.score_thr = test_cfg.get('score_thr', 0)
        self.min_size = test_cfg.get('min_bbox_size', -1)
        if self.min_size > 0 and not self.sizes_are_of_input:
            raise LCQError(
                f'model.test_cfg.min_bbox_size={self.min_size}: is in pixels '
                'of the image before it is resized, which a graph does not '
                'see; set it to 0')

    @property
    def max_per_img(self) -> Optional[int]:
        """Number of boxes that mmdet leaves an image with; None for all."""
        return self.test_cfg.get('max_per_img')

    def suppression(self, where: str) -> Suppression:
        """Tell how boxes are chosen among the candidates.

        Args:
            where: Key of the settings, for messages.

        Raises:
            LCQError: If it cannot be in a graph.
        """
        return read_suppression(self.test_cfg, self.max_per_img, where)

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
        if self.min_size < 0:
            return scores
        sides = boxes[..., 2:] - boxes[..., :2]
        return torch.where((sides > self.min_size).all(-1), scores, NOTHING)


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
    sizes_are_of_input = True

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
