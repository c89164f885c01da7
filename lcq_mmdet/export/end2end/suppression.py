"""Leaving out boxes that overlap better ones, in standard operators."""
from typing import Any, List, Mapping, NamedTuple, Optional

import onnx

from lcq_mmdet.errors import LCQError

from .preprocessing import parse

#: Score of what is no candidate at all.
NOTHING = -1.
# Any number of boxes.
_ALL = 2**31 - 1


class Suppression(NamedTuple):
    """How boxes are chosen among candidates.

    Attributes:
        iou_threshold: Overlap above which the box with the lower score is
            left out, [0, 1]; or ``None``, and all are kept.
        max_per_img: Number of boxes that an image may have; or ``None``.
        agnostic: Whether boxes of other groups count.
    """
    iou_threshold: Optional[float]
    max_per_img: Optional[int]
    agnostic: bool = False


def read_suppression(test_cfg: Mapping[str, Any],
                     max_per_img: Optional[int], where: str) -> Suppression:
    """Read a ``test_cfg`` as mmcv's ``batched_nms`` does.

    Args:
        test_cfg: With the key ``nms``.
        max_per_img: Number of boxes; ``None`` for any.
        where: Key of the config, for messages.

    Raises:
        LCQError: If it asks for more than plain non-maximum suppression.
    """
    options = dict(test_cfg.get('nms') or {})
    kind = options.pop('type', 'nms')
    iou = options.pop('iou_threshold', options.pop('iou_thr', None))
    agnostic = bool(options.pop('class_agnostic', False))
    # It only says how a long list is worked through.
    options.pop('split_thr', None)
    most = options.pop('max_num', -1)
    if kind != 'nms' or iou is None:
        raise LCQError(f'{where}.nms: type={kind!r}, iou_threshold={iou!r}: '
                       "cannot be part of a graph; type='nms' with an "
                       'iou_threshold can')
    if any(options.values()):
        other = next(key for key, value in options.items() if value)
        raise LCQError(f'{where}.nms: {other!r} cannot be part of a graph')
    limits = [n for n in (max_per_img, most) if n is not None and n > 0]
    return Suppression(
        float(iou), min(limits) if limits else None, agnostic)


def suppression(how: Suppression, at_least: int = 0) -> onnx.ModelProto:
    """Write the choice of boxes.

    Args:
        how: What to choose.
        at_least: Number of rows that there are in any case, at most as many
            as candidates.

    Returns:
        A graph from ``boxes``, (N, P, 4), ``scores``, (N, P), negative where
        there is no candidate, and ``groups``, (N, P), int64, to ``dets``,
        (N, K, 5), and ``labels``, (N, K), best first.
    """
    return parse(
        'suppress (float[N, P, 4] boxes, float[N, P] scores, '
        'int64[N, P] groups) => (float[N, K, 5] dets, int64[N, K] labels)\n'
        f'<float zero = {{0.0}}, float one = {{1.0}}, int64[1] unit = {{1}}, '
        'int64[1] none = {0}, int64[1] front = {0}, int64[1] middle = {1}, '
        'int64[1] last = {2}, float[1] nobody = {-0.5}, '
        'int64[2] image_and_box = {0, 2}, int64 absent = {-1}, '
        f'float[1] iou = {{{how.iou_threshold or 0.}}}, '
        f'int64[1] limit = {{{how.max_per_img or _ALL}}}, '
        f'int64[1] least = {{{at_least}}}, float nothing = {{{NOTHING}}}>', [
            'batch = Shape <start = 0, end = 1> (scores)',
            'count = Shape <start = 1, end = 2> (scores)',
            'most = Min (count, limit)',
            'valid = Greater (scores, nobody)',
            *_lines(how),
            'ranked = Where (is_kept, scores, nothing)',
            'score, index = TopK (ranked, most)',
            'is_box = Greater (score, nobody)',
            'ones = Cast <to = 7> (is_box)',
            'boxes_per_image = ReduceSum <keepdims = 1> (ones, unit)',
            'largest_number = ReduceMax <axes = [0], keepdims = 0> '
            '(boxes_per_image)',
            'wanted = Max (largest_number, least)',
            'length = Min (wanted, count)',
            'index_cut = Slice (index, none, length, unit)',
            'is_box_cut = Slice (is_box, none, length, unit)',
            'score_cut = Slice (score, none, length, unit)',
            'index_column = Unsqueeze (index_cut, last)',
            'box = GatherND <batch_dims = 1> (boxes, index_column)',
            'score_column = Unsqueeze (score_cut, last)',
            'pair = Concat <axis = 2> (box, score_column)',
            'is_row = Unsqueeze (is_box_cut, last)',
            'dets = Where (is_row, pair, zero)',
            'group = GatherElements <axis = 1> (groups, index_cut)',
            'labels = Where (is_box_cut, group, absent)',
        ])


def _lines(how: Suppression) -> List[str]:
    """Write which candidates are kept, ``is_kept``, (N, P)."""
    if how.iou_threshold is None:
        return ['is_kept = Identity (valid)']
    apart = [
        'known = Unsqueeze (valid, last)',
        'positive = Where (known, boxes, zero)',
        # Boxes of different groups are moved apart, as mmcv does it.
        'largest = ReduceMax <axes = [1, 2], keepdims = 1> (positive)',
        'step = Add (largest, one)',
        'number = Cast <to = 1> (groups)',
        'column = Unsqueeze (number, last)',
        'offset = Mul (column, step)',
        'apart = Add (boxes, offset)'
    ]
    return [
        *(['apart = Identity (boxes)'] if how.agnostic else apart),
        'rows = Unsqueeze (scores, middle)',
        'chosen = NonMaxSuppression (apart, rows, most, iou, nobody)',
        'place = Gather <axis = 1> (chosen, image_and_box)',
        # One place beyond the end, so that there always is one.
        'first = Concat <axis = 0> (none, count)',
        'beyond = Unsqueeze (first, front)',
        'places = Concat <axis = 0> (place, beyond)',
        'found = Shape <start = 0, end = 1> (places)',
        'marks = ConstantOfShape <value = float[1] {1.0}> (found)',
        'after = Add (count, unit)',
        'extent = Concat <axis = 0> (batch, after)',
        'blank = ConstantOfShape <value = float[1] {0.0}> (extent)',
        'marked = ScatterND (blank, places, marks)',
        'kept = Slice (marked, none, count, unit)',
        'is_kept = Greater (kept, zero)',
    ]
