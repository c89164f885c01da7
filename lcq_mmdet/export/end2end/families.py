"""Which heads can be decoded in a graph, and by what."""
from typing import (Any, Callable, Dict, Mapping, Optional, Sequence, Tuple,
                    Type)

from mmdet.models.dense_heads import (DETRHead, GFLHead, RPNHead, RTMDetHead,
                                      YOLOV3Head, YOLOXHead)
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules.coders import (DeltaXYWHBBoxCoder,
                                              DistancePointBBoxCoder,
                                              TBLRBBoxCoder, YOLOBBoxCoder)

from lcq_mmdet.errors import LCQError

from .dense import (DenseCandidates, DistributionCandidates, PyramidCandidates,
                    RegionCandidates)
from .queries import QueryCandidates
from .yolo import ObjectnessCandidates, YOLOCandidates

#: What decodes boxes in a way that a graph can.
CODERS = (DeltaXYWHBBoxCoder, DistancePointBBoxCoder, TBLRBBoxCoder,
          YOLOBBoxCoder)
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
    is_known = coder is None or type(coder) in CODERS
    if family is None or custom or not is_known:
        why = '' if is_known else f' with {type(coder).__name__}'
        raise LCQError(
            f'{kind.__name__}{why}: boxes of this head cannot be decoded in a '
            'graph; export without --end2end, and mmdet decodes them')
    return family(head, test_cfg, names)
