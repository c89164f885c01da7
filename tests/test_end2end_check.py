"""The check of a graph from images to boxes, before it is written."""
import copy

import numpy as np
import pytest
import torch
from exporting import make_config, make_model
from onnx import numpy_helper

from lcq_mmdet import LCQError
from lcq_mmdet.export.end2end import EndToEndDetector, check, export_end2end
from lcq_mmdet.export.end2end.assembly import Assembly
from lcq_mmdet.export.graphs import GraphDetector, export_onnx


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Config, model and its graph of the network alone."""
    cfg = make_config()
    cfg.model.test_cfg.score_thr = 0.1
    model = make_model(cfg)
    path = tmp_path_factory.mktemp('graph') / 'network.onnx'
    export_onnx(model, str(path), cfg.to_dict())
    return cfg, model, path


def change(monkeypatch, old, new):
    """Let graphs be assembled with another value of a constant."""
    assemble = Assembly.assemble

    def changed(self, network):
        graph = assemble(self, network)
        found = 0
        for constant in graph.graph.initializer:
            value = numpy_helper.to_array(constant)
            if value.shape == np.shape(old) and np.array_equal(
                    value, np.asarray(old, value.dtype)):
                constant.CopyFrom(numpy_helper.from_array(
                    np.asarray(new, value.dtype), constant.name))
                found += 1
        assert found
        return graph

    monkeypatch.setattr(Assembly, 'assemble', changed)


@pytest.mark.parametrize('what, message', [
    ('nothing', None), ('suppression', 'of .* boxes differ between the graph'),
    ('colors', r'^network/head\.0\.0: differs between the graph')
])
@torch.no_grad()
def test_graph_that_finds_something_else_is_refused(
        trained, what, message, tmp_path, monkeypatch):
    cfg, model, _ = trained
    path = tmp_path / 'whole.onnx'
    if what == 'suppression':
        change(monkeypatch, [0.5], [0.05])
    elif what == 'colors':
        mean = model.data_preprocessor.mean.numpy()[None]
        change(monkeypatch, mean, mean[:, ::-1] + 60)
    if message is None:
        export_end2end(model, str(path), cfg)
        return
    with pytest.raises(LCQError, match=message):
        export_end2end(model, str(path), cfg)
    assert not path.exists()


@pytest.mark.parametrize('score_thr, told', [(0.3, 0), (1., 1)])
@torch.no_grad()
def test_comparison_without_boxes_is_told(score_thr, told, trained, tmp_path,
                                          monkeypatch):
    """Or with those of outputs that are larger."""
    warnings = []
    monkeypatch.setattr(check, 'print_log', lambda text, *_: warnings.append(
        text.startswith('LCQ: none of the raw outputs')))
    monkeypatch.setattr(check, '_SPREADS', (1e-3, 4.))
    cfg, model, _ = copy.deepcopy(trained)
    model.bbox_head.test_cfg.score_thr = score_thr
    export_end2end(model, str(tmp_path / 'whole.onnx'), cfg)
    assert warnings == [True] * told


def test_each_detector_wants_its_own_graph(trained, tmp_path):
    cfg, model, network = trained
    with pytest.raises(LCQError, match='finds no boxes; export it again with '
                       '--end2end$'):
        EndToEndDetector(str(network), cfg.model.to_dict())
    whole = tmp_path / 'whole.onnx'
    export_end2end(model, str(whole), cfg)
    with pytest.raises(LCQError, match='has boxes in it already'):
        GraphDetector(model, str(whole), cfg.model.to_dict())
    config = cfg.model.to_dict()
    for graph in (EndToEndDetector(str(whole), config),
                  GraphDetector(model, str(network), config)):
        with pytest.raises(LCQError, match="^mode='loss': a graph knows"):
            graph([], [], mode='loss')
