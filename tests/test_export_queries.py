"""Graphs of detectors whose boxes are those of queries."""
import copy

import onnx
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from test_end2end import detector

from lcq_mmdet import LCQError, convert_
from lcq_mmdet.export.end2end.assembly import Assembly
from lcq_mmdet.export.end2end.preprocessing import Pipeline
from lcq_mmdet.export.graphs import GraphDetector, export_onnx
from lcq_mmdet.export.graphs.heads import check_supported
from lcq_mmdet.export.graphs.metadata import write_metadata
from lcq_mmdet.export.graphs.network import DetectorNetwork
from lcq_mmdet.export.graphs.trace import trace
from lcq_mmdet.quantization.calibration import initialize_, observe

CONFIG = {'model': {}}


def test_network_is_told_what_is_padding(tmp_path):
    """Masks are not in the graph; mmdet has them."""
    network, *_ = detector('detr')
    path = tmp_path / 'network.onnx'
    graph = trace(network)
    write_metadata(graph, str(CONFIG), '{}')
    onnx.save(graph, path)
    model = GraphDetector(copy.deepcopy(network.detector), str(path), {})
    data = demo_mm_inputs(2, [(3, 128, 128), (3, 128, 128)])
    data = model.data_preprocessor(data, False)
    expected = network.detector(**data, mode='predict')
    expected = [sample.pred_instances.clone() for sample in expected]
    for found, instances in zip(model(**data), expected):
        torch.testing.assert_close(
            found.pred_instances.bboxes, instances.bboxes)
        torch.testing.assert_close(
            found.pred_instances.scores, instances.scores)
    data = demo_mm_inputs(2, [(3, 128, 128), (3, 128, 96)])
    with pytest.raises(LCQError, match='^images of a batch have different'):
        model(**model.data_preprocessor(data, False))


def test_padding_that_a_graph_would_add_is_refused():
    model = copy.deepcopy(detector('detr')[0].detector)
    with pytest.raises(LCQError, match='^--end2end: the test pipeline has a '
                       'Pad; the graph of a DETR'):
        Assembly(model, Pipeline(None, [dict(size_divisor=32)]))
    model.data_preprocessor.pad_size_divisor = 32
    with pytest.raises(LCQError, match='pad_size_divisor is 32'):
        Assembly(model, Pipeline(None, []))


@torch.no_grad()
@pytest.mark.parametrize('int8', [None, 'exact', 'relaxed'])
def test_whole_detector_is_exported(tmp_path, int8):
    """The export itself compares each layer with torch."""
    model = copy.deepcopy(detector('detr')[0].detector)
    convert_(model, bits=4, modules=[
        'backbone', 'neck', 'encoder', 'decoder', 'bbox_head'])
    network = DetectorNetwork(model.eval())
    inputs = network.example(96, 128)
    with observe(model) as observations:
        network(*inputs)
    initialize_(model, observations)
    export = export_onnx(model, str(tmp_path / 'model.onnx'), CONFIG,
                         int8=int8, images=inputs)
    assert export.integer_share > (0.95 if int8 else -1)
    # Projections in torch's attention are no layers of their own.
    assert all('.attn.' in name for name in export.left_float)


def test_other_detectors_with_queries_are_refused_by_name():
    model = copy.deepcopy(detector('detr')[0].detector)

    class OtherDETR(type(model)):
        pass

    model.__class__ = OtherDETR
    with pytest.raises(LCQError, match='^OtherDETR: cannot be exported'):
        check_supported(model)
