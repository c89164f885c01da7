"""ONNX graphs: the network as torch computes it, in onnxruntime."""
import copy
from functools import cache

import onnx
import pytest
import torch
from exporting import make_config, make_model
from onnx import TensorProto
from torch import nn

from lcq_mmdet import LCQError
from lcq_mmdet.export.engines import ENGINES
from lcq_mmdet.export.graphs import GraphDetector, export_onnx, folding, writer
from lcq_mmdet.export.graphs.heads import POOLED
from lcq_mmdet.export.graphs.network import IMAGE, DetectorNetwork
from lcq_mmdet.export.graphs.session import Graph
from lcq_mmdet.quantization.mmcv_layers import LCQConvTranspose2d

CASES = {
    'W4A4': dict(),
    'W2A2': dict(bits=2),
    'W3A4, symmetric': dict(
        weight_bits=3, signed_weight='symmetric', signed_act='symmetric'),
    'channel': dict(weight_norm='channel'),
    'levels of 8 bits': dict(
        out_bits=8, signed_act='symmetric', weight_norm='channel'),
    'head': dict(
        quantizer='uniform', modules=('backbone', 'neck', 'bbox_head')),
    'step sizes': dict(bits=2, quantizer='lsq'),
    'two stages': dict(detector='FasterRCNN'),
    'two stages, W2A2': dict(detector='FasterRCNN', bits=2),
    'two stages, all': dict(detector='FasterRCNN', modules=('*', )),
    'two stages, all, channel': dict(
        detector='FasterRCNN', modules=('*', ), weight_norm='channel',
        signed_act='symmetric'),
}


def export(model, cfg, path):
    return export_onnx(model, str(path), cfg.to_dict()).size


def graph_of(path, outputs=()):
    model = onnx.load(path)
    inputs = [value.name for value in model.graph.input]
    return Graph(model, inputs,
                 outputs or [value.name for value in model.graph.output])


@cache
def calibrated(detector='RetinaNet', **options):
    cfg = make_config(detector, **options)
    return cfg, make_model(cfg)


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_outputs_are_those_of_torch(name, tmp_path):
    cfg, model = calibrated(**CASES[name])
    size = export(model, cfg, tmp_path / 'model.onnx')
    assert size == (tmp_path / 'model.onnx').stat().st_size
    network = DetectorNetwork(model)
    graph = graph_of(tmp_path / 'model.onnx')
    assert network.outputs == graph.outputs
    for height, width in ((64, 96), (128, 64)):
        image, *pooled = network.example(height, width)
        inputs = (image[:1 if width == 64 else 2], *pooled)
        expected, found = network(*inputs), graph(*inputs)
        for one, other in zip(expected, found):
            # Sums are rounded differently, so that here and there a value
            # beside a threshold takes the other level.
            differs = (one - other).abs() > 1e-4
            assert differs.double().mean() < 0.01


@pytest.mark.parametrize('bits, dtype', [
    (2, TensorProto.UINT2), (3, TensorProto.UINT4), (4, TensorProto.UINT4),
    (5, TensorProto.UINT8)])
def test_weights_are_codes(bits, dtype, tmp_path):
    cfg, model = calibrated(weight_bits=bits)
    export(model, cfg, tmp_path / 'model.onnx')
    model = onnx.load(tmp_path / 'model.onnx')
    constants = {value.name: value for value in model.graph.initializer}
    name = 'backbone.layer1.0.conv1'
    codes = constants[f'{name}.weight']
    assert codes.data_type == dtype
    assert tuple(codes.dims) == (8, 8, 3, 3)
    codebook = constants[f'{name}.weight_quantizer.codebook']
    assert codebook.dims[0] <= 2**bits
    cast, = (n for n in model.graph.node if codes.name in n.input)
    gather, = (n for n in model.graph.node if cast.output[0] in n.input)
    assert (cast.op_type, gather.op_type) == ('Cast', 'Gather')
    assert gather.input[0] == codebook.name
    assert {n.domain for n in model.graph.node} <= {'', 'ai.onnx'}
    for value in model.graph.input:
        assert value.type.tensor_type.shape.dim[0].dim_param


class Unknown(nn.Module):

    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_unknown_operator_names_the_layer(tmp_path):
    cfg, model = calibrated()
    model = copy.deepcopy(model)
    model.neck.lateral_convs[1].activate = Unknown()
    model.neck.lateral_convs[1].with_activation = True
    with pytest.raises(
            LCQError, match=r"^neck.lateral_convs.1.activate: .*bessel_j0"):
        export(model, cfg, tmp_path / 'model.onnx')


def test_other_padding_names_the_layer(tmp_path):
    cfg, model = calibrated()
    model = copy.deepcopy(model)
    model.backbone.conv1.padding_mode = 'reflect'
    with pytest.raises(LCQError, match='^backbone.conv1: padding_mode='):
        export(model, cfg, tmp_path / 'model.onnx')


def test_broken_graph_replaces_nothing(tmp_path, monkeypatch):
    cfg, model = calibrated()
    path = tmp_path / 'model.onnx'
    path.write_bytes(b'before')

    def wrong(*args):
        weight = encode(*args)
        weight.codes.flat[0] ^= 1
        return weight

    encode = writer.encode_weight
    monkeypatch.setattr(writer, 'encode_weight', wrong)
    with pytest.raises(LCQError, match='^backbone.conv1: differs by'):
        export(model, cfg, path)
    assert path.read_bytes() == b'before'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('name, where', [
    ('detector.bbox_head.retina_cls.weight', 'head.0.[0-4]'),
    ('detector.bbox_head.retina_reg.bias', 'head.1.[0-4]'),
    ('detector.backbone.layer1.0.bn1.running_mean',
     'input of backbone.layer1.0.conv2'),
])
def test_wrong_float_part_replaces_nothing(name, where, tmp_path,
                                           monkeypatch):
    """What lies between quantized layers and after the last is compared."""
    cfg, model = calibrated()

    def lower_wrongly(*args):
        graph = lower(*args)
        value = next(v for v in graph.graph.initializer if v.name == name)
        array = onnx.numpy_helper.to_array(value).copy()
        array.flat[-1] += 1e-2
        value.CopyFrom(onnx.numpy_helper.from_array(array, name))
        return graph

    lower = writer.lower
    monkeypatch.setattr(writer, 'lower', lower_wrongly)
    with pytest.raises(LCQError, match=f'^{where}: differs by'):
        export(model, cfg, tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp('onnx') / 'model.onnx'
    cfg, model = calibrated('FasterRCNN')
    export(model, cfg, path)
    return cfg, model, path


def test_other_config_is_refused(exported):
    cfg, model, path = exported
    other = cfg.model.to_dict()
    other['neck']['num_outs'] += 1
    with pytest.raises(LCQError, match='model.onnx: is of another config: '
                       'model.neck.num_outs is '):
        GraphDetector(copy.deepcopy(model), str(path), other)
    other['neck']['num_outs'] -= 1
    other['bits'] = 3
    with pytest.raises(LCQError, match='model.bits is 4 in the file'):
        GraphDetector(copy.deepcopy(model), str(path), other)


@pytest.mark.parametrize('change, message', [
    ('cut', 'is no ONNX file that can be read'),
    ('graph', 'its graph does not fit its checksum'),
    ('version', 'is of format version 9'),
    ('metadata', 'its metadata do not fit their checksum'),
    ('foreign', 'is not a graph of lcq export'),
])
def test_altered_files_are_refused(exported, tmp_path, change, message):
    cfg, model, path = exported
    graph = onnx.load(path)
    entries = {entry.key: entry for entry in graph.metadata_props}
    if change == 'graph':
        weight = next(value for value in graph.graph.initializer
                      if value.name == 'backbone.conv1.weight')
        weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    elif change == 'version':
        entries['version'].value = '9'
    elif change == 'metadata':
        entries['config'].value += ' '
    elif change == 'foreign':
        del graph.metadata_props[:]
    data = graph.SerializeToString()
    broken = tmp_path / 'broken.onnx'
    broken.write_bytes(data[:len(data) // 2] if change == 'cut' else data)
    with pytest.raises(LCQError, match=f'broken.onnx: .*{message}'):
        GraphDetector(copy.deepcopy(model), str(broken), cfg.model.to_dict())


def test_parts_of_two_stages_are_apart(exported):
    """The second stage computes nothing of the first."""
    _, _, path = exported
    model = onnx.load(path)
    outputs = ['second_stage.cls_score', 'second_stage.bbox_pred']
    graph = Graph(model, [POOLED], outputs)
    scores, deltas = graph(torch.randn(7, 16, 7, 7))
    assert (scores.shape, deltas.shape) == ((7, 11), (7, 40))
    assert Graph(model, [IMAGE], ['head.0.0'])(torch.randn(
        1, 3, 64, 96))[0].shape[2:] == (16, 24)


@pytest.mark.parametrize('mode', ['exact', 'relaxed'])
@torch.no_grad()
def test_linear_layers_are_integer_ones(mode, tmp_path):
    cfg, model = calibrated('FasterRCNN', modules=('*', ), bits=8)
    path = tmp_path / 'model.onnx'
    images = DetectorNetwork(model).example(64, 96)[:1]
    export_onnx(model, str(path), cfg.to_dict(), int8=mode, images=images)
    written = onnx.load(path)
    constants = {value.name: value for value in written.graph.initializer}
    made = {node.output[0]: node for node in written.graph.node}
    products = [n for n in written.graph.node if n.op_type == 'MatMul']
    assert len(products) == 4
    for node in products:
        x, weight = (made[name] for name in node.input)
        assert x.op_type == weight.op_type == 'DequantizeLinear'
        assert constants[weight.input[0]].data_type == TensorProto.INT8
        assert len(constants[weight.input[1]].dims) == 1


@pytest.mark.parametrize('mode, engine, op_type', [
    ('exact', 'onnxruntime', 'GatherElements'),
    ('exact', 'openvino', 'Gather'), ('relaxed', 'onnxruntime', None)])
@torch.no_grad()
def test_all_layers_are_integer_ones(mode, engine, op_type, tmp_path):
    """What training left in float, too, unless it is kept."""
    cfg, model = calibrated()
    path = tmp_path / 'model.onnx'
    images = DetectorNetwork(model).example(64, 96)[:1]
    kept = 'bbox_head.retina_reg'
    export = export_onnx(model, str(path), cfg.to_dict(), int8=mode,
                         images=images, keep_float=[kept], engine=engine)
    assert export.left_float == {kept: f'kept by {kept!r}'}
    assert 0.95 < export.integer_share < 1
    written = onnx.load(path)
    constants = {value.name: value for value in written.graph.initializer}
    made = {node.output[0]: node for node in written.graph.node}
    tables = set()
    convs = [node for node in written.graph.node if node.op_type == 'Conv']
    floats = [node for node in convs if node.input[1] not in made]
    assert len(convs) == 28 + 4 * 5 and len(floats) == 5
    for node in convs:
        if node in floats:
            assert kept in node.name + node.input[1]
            continue
        codes = constants[made[node.input[1]].input[0]]
        assert codes.data_type == TensorProto.INT8
        x = made[node.input[0]]
        assert x.op_type == 'DequantizeLinear'
        x = made[x.input[0]]
        tables.add(made[x.input[0]].op_type if x.op_type == 'Reshape' else
                   x.op_type)
    assert tables & {'Gather', 'GatherElements'} == ({op_type} - {None})


@torch.no_grad()
def test_float_layers_keep_what_they_compute(tmp_path):
    """A layer in 8 bits for a float one is as near as 8 bits are."""
    cfg, model = calibrated(modules=('backbone.layer1', ), bits=8)
    path = tmp_path / 'model.onnx'
    images = DetectorNetwork(model).example(64, 96)[:1]
    export = export_onnx(model, str(path), cfg.to_dict(), int8='relaxed',
                         images=images, keep_float=[])
    assert export.integer_share == 1 and not export.left_float
    for found, expected in zip(graph_of(path)(*images),
                               DetectorNetwork(model)(*images)):
        assert (found - expected).norm() < 0.1 * expected.norm()


def test_wrong_integers_replace_nothing(tmp_path, monkeypatch):
    cfg, model = calibrated()
    step = folding.weight_step
    monkeypatch.setattr(folding, 'weight_step',
                        lambda *args: step(*args) / 2)
    with pytest.raises(LCQError, match='^backbone.conv1: differs by'):
        export_onnx(model, str(tmp_path / 'model.onnx'), cfg.to_dict(),
                    int8='relaxed', images=[torch.randn(1, 3, 64, 64)])
    assert not list(tmp_path.iterdir())


def test_layer_of_an_unknown_kind_is_named(tmp_path):
    cfg, model = calibrated(modules=('backbone', 'neck', 'bbox_head'))
    model = copy.deepcopy(model)
    model.extra = LCQConvTranspose2d(2, 2, 1)
    for quantizer in (model.extra.act_quantizer, model.extra.weight_quantizer):
        quantizer.initialize_(torch.randn(64), signed=True)
    with pytest.raises(LCQError, match='^extra: a quantized ConvTranspose2d '
                       'cannot be '
                       'exported to ONNX'):
        export(model, cfg, tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_engines_agree(exported):
    pytest.importorskip('openvino')
    _, model, path = exported
    network = DetectorNetwork(model)
    inputs = network.example(64, 96)
    one, other = (
        Graph(onnx.load(path), network.inputs, network.outputs, engine=engine)
        for engine in ('onnxruntime', 'openvino'))
    expected, found = one(*inputs), other(*inputs)
    for name, x, y in zip(network.outputs, expected, found):
        assert x.shape == y.shape and x.dtype == y.dtype
        # A value beside a threshold takes the other level.
        differs = (x - y).abs() > 1e-4
        assert differs.double().mean() < 0.01, name
    # A second call leaves the results of the first as they are.
    before = [value.clone() for value in found]
    other(*(value + 1 for value in inputs))
    assert all(map(torch.equal, before, found))


PRODUCTS = """
<ir_version: 10, opset_import: ["": 21]>
products (float[N, 64, H, W] image) => (float[N, 64, H, W] sums)
<float step = {0.01}, uint8 zero = {100}, int8[64, 64, 1, 1] weight = {%s},
 float[64] scales = {%s}, float out = {4.0}, uint8 middle = {128}>
{
  codes = QuantizeLinear (image, step, zero)
  x = DequantizeLinear (codes, step, zero)
  w = DequantizeLinear <axis = 0> (weight, scales)
  y = Conv (x, w)
  rounded = QuantizeLinear (y, out, middle)
  sums = DequantizeLinear (rounded, out, middle)
}
"""


@pytest.mark.parametrize('engine', ENGINES)
def test_engines_add_products_of_8_bits_exactly(engine):
    """Sums are of 32 bits, and rounded as the graph is read."""
    pytest.importorskip(engine)
    weight = torch.randint(100, 128, (64, 64))
    model = onnx.parser.parse_model(PRODUCTS % (
        ', '.join(map(str, weight.flatten().tolist())),
        ', '.join(['0.01'] * 64)))
    codes = torch.randint(200, 256, (2, 64, 3, 5))
    y = torch.einsum('oi,nihw->nohw', weight.double(),
                     codes.double() - 100) * 1e-4
    found, = Graph(model, ['image'], ['sums'], engine=engine)(
        (codes - 100) * 0.01)
    assert torch.equal(found.double(), (y / 4).round() * 4)


def test_layers_that_nothing_reads_are_left_out(tmp_path):
    """As the last stage of this backbone, which is computed nevertheless."""
    cfg = make_config()
    cfg.model.backbone.out_indices = (0, 1, 2)
    cfg.model.neck.in_channels = [8, 16, 32]
    model = make_model(cfg)
    export(model, cfg, tmp_path / 'model.onnx')
    names = [v.name for v in onnx.load(tmp_path / 'model.onnx').graph
             .initializer]
    assert any('backbone.layer3' in name for name in names)
    assert not any('backbone.layer4' in name for name in names)
