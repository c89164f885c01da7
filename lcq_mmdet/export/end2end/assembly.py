"""A network, what happens before it and what happens after it, as a graph."""
from typing import Any, Dict, List, Mapping, Sequence

import onnx
import onnx.utils
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

from ..graphs.heads import (POOLED, dense_head, has_queries,
                            second_stage_outputs)
from ..graphs.network import IMAGE, DetectorNetwork
from ..graphs.trace import export_module
from .composition import Part, join
from .dense import DenseCandidates
from .families import dense_candidates
from .metadata import OUTPUTS
from .preprocessing import LIMITS, PREPARED, Pipeline, preprocessing
from .regions import RegionBoxes, RegionPooling, check_second_stage
from .suppression import Suppression, read_suppression, suppression

NETWORK = 'network'
_BOXES = ('boxes', 'scores', 'labels')


class Assembly:
    """Everything about a detector that a self-contained graph needs.

    Args:
        detector: A detector whose network can be a graph, in eval mode; it
            is not changed.
        pipeline: What its test pipeline does.

    Attributes:
        suppression: How its boxes are chosen in the end.
        score_thr: The lowest score of a box.

    Raises:
        LCQError: If a part of it cannot be in a graph; names the part.
    """

    def __init__(self, detector: Any, pipeline: Pipeline) -> None:
        self._network = DetectorNetwork(detector)
        self._before = preprocessing(detector.data_preprocessor, pipeline)
        self._head = dense_head(detector)
        names = self._network.outputs
        if not self._network.region_heads:
            test_cfg = self._head.test_cfg
            self._candidates = dense_candidates(self._head, test_cfg, names)
            self.suppression: Suppression = self._candidates.suppression(
                'model.test_cfg')
        else:
            check_second_stage(detector.roi_head)
            self._candidates = dense_candidates(
                self._head, detector.test_cfg.rpn, names)
            self._regions = self._candidates.suppression('model.test_cfg.rpn')
            test_cfg = detector.test_cfg.rcnn
            self.suppression = read_suppression(
                test_cfg, test_cfg.get('max_per_img'), 'model.test_cfg.rcnn')
            self._second = RegionBoxes(detector.roi_head.bbox_head, test_cfg)
            self._pooling = RegionPooling(
                detector.roi_head.bbox_roi_extractor)
        if has_queries(detector):
            _check_unpadded(detector, pipeline)
        self.score_thr = float(test_cfg.get('score_thr', 0))

    @torch.no_grad()
    def assemble(self, network: onnx.ModelProto) -> onnx.ModelProto:
        """Put a network's graph between what comes before and after it.

        Args:
            network: A graph of ``export_onnx``; it is not changed.
        """
        names = self._network.outputs
        example = dict(zip(names, self._network(
            *self._network.example(*self._network.size))))
        second = second_stage_outputs(names)
        first = [name for name in names if name not in second]
        parts = [
            Part('before', self._before, {
                IMAGE: IMAGE,
                PREPARED: f'{NETWORK}/{IMAGE}',
                LIMITS: LIMITS
            }),
            Part(NETWORK, _part(network, [IMAGE], first), {}, named=True)
        ]
        add = parts.append
        heads = {name: example[name] for name in first
                 if name.startswith('head')}
        add(_candidates('decode', self._candidates, heads))
        if second:
            maps = {name: example[name] for name in first
                    if name not in heads}
            add(_choice('propose', self._regions, 'decode',
                        ['regions', 'is_region'], at_least=1))
            regions = torch.rand(2, 3, 5)
            regions[..., 2:] += 1.
            add(_traced('pool', self._pooling,
                        {'regions': regions, **_of_network(maps)},
                        [f'{NETWORK}/{POOLED}']))
            add(Part(NETWORK, _part(network, [POOLED], second), {},
                     named=True))
            rows = {name: torch.randn(6, example[name].shape[1])
                    for name in second}
            add(_traced(
                'refine', self._second, {
                    LIMITS: torch.ones(4),
                    'regions': regions,
                    'is_region': torch.zeros(2, 3, dtype=torch.int64),
                    **_of_network(rows)
                }, [f'refine/{name}' for name in _BOXES]))
        add(_choice('suppress', self.suppression,
                    'refine' if second else 'decode', OUTPUTS))
        value = helper.make_tensor_value_info
        return join(
            parts,
            [value(IMAGE, TensorProto.UINT8, ['N', 'H', 'W', 3])],
            [value(OUTPUTS[0], TensorProto.FLOAT, ['N', 'K', 5]),
             value(OUTPUTS[1], TensorProto.INT64, ['N', 'K'])])


def _check_unpadded(detector: Any, pipeline: Pipeline) -> None:
    """Raise an ``LCQError`` if queries would attend to padding."""
    divisor = detector.data_preprocessor.pad_size_divisor
    if pipeline.pads or divisor > 1:
        what = ('the test pipeline has a Pad' if pipeline.pads else
                f'model.data_preprocessor.pad_size_divisor is {divisor}')
        raise LCQError(f'--end2end: {what}; the graph of a '
                       f'{type(detector).__name__} does not know what is '
                       'padding: take it out')


def _part(network: onnx.ModelProto, inputs: List[str],
          outputs: List[str]) -> onnx.ModelProto:
    return onnx.utils.Extractor(network).extract_model(inputs, outputs)


def _of_network(values: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    return {f'{NETWORK}/{name}': value for name, value in values.items()}


def _candidates(name: str, module: DenseCandidates,
                maps: Mapping[str, Tensor]) -> Part:
    module.names = list(maps)
    return _traced(name, module, {
        LIMITS: torch.ones(4),
        **_of_network(maps)
    }, [f'{name}/{output}' for output in _BOXES])


def _choice(name: str, how: Suppression, source: str, outputs: Sequence[str],
            at_least: int = 0) -> Part:
    inputs = ('boxes', 'scores', 'groups')
    return Part(name, suppression(how, at_least), {
        **{one: f'{source}/{other}' for one, other in zip(inputs, _BOXES)},
        **dict(zip(OUTPUTS, outputs))
    })


def _traced(name: str, module: nn.Module, inputs: Mapping[str, Tensor],
            outputs: Sequence[str]) -> Part:
    """Write a module as a graph in which all but channels may change."""
    axes = {}
    for key, value in inputs.items():
        dims = {4: (0, 2, 3), 3: (0, 1), 2: (0, )}.get(value.dim(), ())
        axes[key] = {dim: f'{key}_{dim}' for dim in dims}
    if 'is_region' in axes:
        axes['is_region'][1] = 'is_region_1'
    model = export_module(module.eval(), tuple(inputs.values()), list(inputs),
                          outputs, axes, fold=True)
    names = [*inputs, *outputs]
    return Part(name, model, dict(zip(names, names)))
