"""Whatever is wrong in an 8-bit graph is found before it is written."""
import copy

import numpy as np
import pytest
import torch
from exporting import make_config, make_model
from onnx import numpy_helper

from lcq_mmdet import LCQError
from lcq_mmdet.export.graphs import export_onnx, writer
from lcq_mmdet.export.graphs.check_integer import check_integers


def record(mode, folder):
    """Export, and return what the check was called with."""
    cfg = make_config(
        modules=('backbone', 'neck', 'bbox_head.cls_convs'), bits=3)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, 'check_integers', lambda *args: calls.append(
            args))
        export_onnx(make_model(cfg), str(folder / 'model.onnx'),
                    cfg.to_dict(), int8=mode, keep_float=[],
                    images=[torch.randn(2, 3, 96, 128)])
    return calls[0]


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    return record('exact', tmp_path_factory.mktemp('checks'))


def checking(recorded):
    """Change the written graph and check it."""
    graph, written, *rest = recorded

    def checked(change=lambda model: None):
        model = copy.deepcopy(written)
        change(model)
        check_integers(graph, model, *rest)

    return checked


@pytest.fixture
def check(recorded):
    return checking(recorded)


def change_constant(model, name, function):
    value = next(v for v in model.graph.initializer if v.name == name)
    array = function(numpy_helper.to_array(value).copy())
    value.CopyFrom(numpy_helper.from_array(array, name))


def node_of(model, op_type, scope):
    return next(node for node in model.graph.node
                if node.op_type == op_type and node.name.startswith(scope))


def test_graph_as_it_is_passes(check):
    check()


LAYER = 'backbone.layer2.0.conv2'


def scaled(name, factor):
    return lambda model: change_constant(
        model, name, lambda array: (array * factor).astype(array.dtype))


def shifted(name):
    return lambda model: change_constant(
        model, name, lambda array: (array + np.uint8(1)).astype(array.dtype))


def weight_of(scope, what):
    """Change codes or steps of a layer's weight or bias."""

    def change(model):
        conv = node_of(model, 'Conv', scope)
        made = {node.output[0]: node for node in model.graph.node}
        source = made[conv.input[2 if 'bias' in what else 1]]
        name = source.input[1 if 'step' in what else 0]
        change_constant(model, name, wrong[what])

    def swapped(steps):
        steps[[0, 1]] = steps[[1, 0]]
        return steps

    def one_code(codes):
        codes.flat[5] += 8 if codes.flat[5] < 100 else -8
        return codes

    wrong = {
        'step': lambda steps: steps * np.float32(1.02),
        'swapped step': swapped,
        'code': one_code,
        'bias': lambda codes: codes + (np.abs(codes).max() // 20 + 1).astype(
            codes.dtype),
    }
    return change


def other_operand(model):
    add = node_of(model, 'Add', '/backbone/layer2/layer2.1/Add')
    add.input[1] = add.input[0]


def other_pads(model):
    for attribute in node_of(model, 'Conv', LAYER).attribute:
        if attribute.name == 'pads':
            attribute.ints[:] = [2, 2, 0, 0]


def other_resize(model):
    for attribute in node_of(model, 'Resize', '/neck').attribute:
        if attribute.name == 'nearest_mode':
            attribute.s = b'ceil'


CHANGES = {
    'step of an input': scaled(f'{LAYER}.act_quantizer.levels.step', 1.02),
    'zero point of an input': shifted(
        'neck.fpn_convs.0.conv.act_quantizer.levels.zero_point'),
    'step of a stream': scaled(
        '/backbone/layer2/layer2.0/relu_1/Relu_output_0.step', 1.05),
    'zero point of a stream': shifted('/neck/Add_output_0.zero_point'),
    'step of an output': scaled('head.0.1.step', 1.05),
    'zero point of an output': shifted('head.1.1.zero_point'),
    'step of a weight': weight_of(LAYER, 'step'),
    'steps of two channels': weight_of(LAYER, 'swapped step'),
    'code of a weight': weight_of(LAYER, 'code'),
    'bias': weight_of(LAYER, 'bias'),
    'code of a float layer': weight_of('bbox_head.retina_reg', 'code'),
    'step of a float layer': weight_of('bbox_head.retina_cls', 'step'),
    'operand of a sum': other_operand,
    'padding': other_pads,
    'resizing': other_resize,
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_wrong_constant_or_attribute_is_refused(change, check):
    with pytest.raises(LCQError, match='differs by|its 8-bit range'):
        check(change)


def test_wrong_table_is_refused(check, recorded):
    tables = [value.name for value in recorded[1].graph.initializer
              if 'table' in value.name]
    assert len(tables) > 20
    for name in tables[::12]:
        with pytest.raises(LCQError, match='^input of .*: differs by'):
            check(lambda model: change_constant(
                model, name, lambda table: np.roll(table, 1, -1)))


def test_wrong_clip_is_refused(tmp_path):
    """With no tables, maps of several readers are clipped for each."""
    recorded = record('relaxed', tmp_path)
    check = checking(recorded)
    check()
    high = next(value.name for value in recorded[1].graph.initializer
                if value.name.endswith('.high'))
    with pytest.raises(LCQError, match='^input of .*: differs by'):
        check(lambda model: change_constant(
            model, high, lambda code: np.uint8(code - 9)))


def test_wrong_ranges_are_refused(recorded):
    graph, written, traced, layers, ranges, inputs = recorded
    name = 'head.1.0'
    low, high = ranges[name]
    for wrong in ((low, 2 * high), (low / 2, high)):
        with pytest.raises(LCQError, match=f'^{name}: its 8-bit range is'):
            check_integers(graph, written, traced, layers,
                           {**ranges, name: wrong}, inputs)


def test_wrong_wiring_is_refused(check):
    """A layer that reads the map of another one."""

    def change(model):
        scores, boxes = (node_of(model, 'Conv', f'bbox_head.{name}')
                         for name in ('retina_cls', 'retina_reg'))
        scores.input[0] = boxes.input[0]

    with pytest.raises(LCQError, match='^bbox_head.retina_cls: differs by'):
        check(change)
