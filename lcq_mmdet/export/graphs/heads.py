"""The heads of a detector, and which of them a graph can stand in for."""
from typing import Any, List, NamedTuple, Sequence, Tuple

from mmdet.models.detectors import DETR, SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

POOLED = 'pooled'
_SECOND_STAGE = 'second_stage.'
# Kinds of heads: what inputs and what outputs are called.
_KINDS = (('bbox', POOLED, ('cls_score', 'bbox_pred')),
          ('mask', f'mask_{POOLED}', ('mask_pred', )))


class RegionHead(NamedTuple):
    """A head that computes something of each region's pooled features.

    Attributes:
        module: The head.
        extractor: What pools features for it.
        input: Name of its input.
        outputs: Names of its outputs.
        place: Its parent, and its name or number there.
    """
    module: Any
    extractor: Any
    input: str
    outputs: Sequence[str]
    place: Tuple[Any, Any]

    def compute(self, pooled: Tensor) -> Sequence[Tensor]:
        """Compute the outputs of pooled features of regions."""
        found = self.module(pooled)
        return [found] if isinstance(found, Tensor) else found

    def replace_(self, module: nn.Module) -> None:
        """Put a module in the place of the head."""
        parent, key = self.place
        if isinstance(key, int):
            parent[key] = module
        else:
            setattr(parent, key, module)


def region_heads(detector: Any) -> List[RegionHead]:
    """List the heads of a detector's second stage, and of those after it.

    The first box head has the input ``pooled`` and the outputs
    ``second_stage.cls_score`` and ``second_stage.bbox_pred``. What follows
    one of its kind in a cascade has a number: ``pooled.1``,
    ``second_stage.1.cls_score``. A mask head has the input ``mask_pooled``
    and the output ``second_stage.mask_pred``.
    """
    roi_head = getattr(detector, 'roi_head', None)
    heads: List[RegionHead] = []
    for kind, name, outputs in _KINDS:
        if not getattr(roi_head, f'with_{kind}', False):
            continue
        key = f'{kind}_head'
        modules = getattr(roi_head, key)
        extractors = getattr(roi_head, f'{kind}_roi_extractor')
        if not isinstance(modules, nn.ModuleList):
            heads.append(RegionHead(
                modules, extractors, name,
                [f'{_SECOND_STAGE}{output}' for output in outputs],
                (roi_head, key)))
            continue
        for index, module in enumerate(modules):
            number = f'{index}.' if index else ''
            heads.append(RegionHead(
                module, extractors[index], f'{name}.{number}'.rstrip('.'),
                [f'{_SECOND_STAGE}{number}{output}' for output in outputs],
                (modules, index)))
    return heads


def second_stage_outputs(names: Sequence[str]) -> List[str]:
    """Select the outputs of heads that take regions; there may be none."""
    return [name for name in names if name.startswith(_SECOND_STAGE)]


def dense_head(detector: Any) -> Any:
    """Return the head that sees whole feature maps."""
    return getattr(detector, 'bbox_head', None) or detector.rpn_head


def has_queries(detector: nn.Module) -> bool:
    """Tell whether boxes are those of queries, which attend to features."""
    return type(detector) is DETR


def check_supported(detector: nn.Module) -> None:
    """Raise an ``LCQError`` unless a graph can stand in for the network."""
    if isinstance(detector, SingleStageDetector) or has_queries(detector):
        return
    problem = type(detector).__name__
    if isinstance(detector, TwoStageDetector):
        roi_head: Any = getattr(detector, 'roi_head', None)
        unknown = [
            type(head.module).__name__ for head in region_heads(detector)
            if head.input.startswith('mask')
            and type(head.module) is not FCNMaskHead
        ]
        known_head = type(roi_head) in (StandardRoIHead, CascadeRoIHead) or (
            isinstance(roi_head, StandardRoIHead) and not roi_head.with_mask)
        if not known_head:
            problem += f' with a {type(roi_head).__name__}'
        elif unknown:
            problem += f' with a {unknown[0]}'
        elif roi_head.with_shared_head:
            problem += ' with a shared_head'
        elif not detector.with_rpn:
            problem += ' without an rpn_head'
        else:
            return
    raise LCQError(
        f'{problem}: cannot be exported to ONNX; detectors of one stage can, '
        'DETR, and Faster, Mask and Cascade R-CNN. A packed file (--out '
        'NAME.safetensors) takes any detector, and runs in mmdet')
