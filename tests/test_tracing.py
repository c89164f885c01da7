"""Through other tools of torch: graphs, copies, threads, layouts."""
import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from exporting import make_config, make_model
from mmengine.analysis import get_model_complexity_info
from torch import nn

from lcq_mmdet import calibrate_, convert_

OPTIONS = {
    'default': dict(),
    'other': dict(weight_norm='channel', signed_act='symmetric', out_bits=8),
}


def make_network(**options):
    """A convolution and a linear layer, calibrated, in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5))
    convert_(model, bits=3, modules=['*'], **options)
    calibrate_(model, [torch.randn(4, 3, 16, 16) for _ in range(2)])
    return model.eval()


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS)
def network(request):
    return make_network(**request.param)


@pytest.fixture
def x():
    return torch.randn(4, 3, 16, 16)


class Outputs(nn.Module):
    """What the heads of a detector compute, as one tuple."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, x):
        levels = self.detector(x, mode='tensor')
        return tuple(y for level in levels for y in level)


@pytest.fixture(scope='module', params=[False, True],
                ids=['shared', 'per_level'])
def detector(request):
    cfg = make_config(modules=['bbox_head'], per_level=request.param)
    return Outputs(make_model(cfg)).eval()


def through_file(save, load, *arguments):
    file = io.BytesIO()
    save(*arguments, file)
    file.seek(0)
    return load(file)


def trace(model, x):
    traced = torch.jit.trace(model, x)
    return through_file(torch.jit.save, torch.jit.load, traced)


def export(model, x):
    program = torch.export.export(model, (x, ))
    return through_file(torch.export.save, torch.export.load,
                        program).module()


def compile_whole(model, x):
    return torch.compile(model, backend='aot_eager', fullgraph=True)


def to_onnx(model, x):
    onnxruntime = pytest.importorskip('onnxruntime')
    file = io.BytesIO()
    torch.onnx.export(model, (x, ), file, dynamo=False,
                      input_names=['x'])
    session = onnxruntime.InferenceSession(file.getvalue())

    def run(x):
        found = [torch.from_numpy(y)
                 for y in session.run(None, dict(x=x.numpy()))]
        return found[0] if len(found) == 1 else tuple(found)

    return run


TOOLS = [trace, export, compile_whole, to_onnx]


@pytest.mark.parametrize('tool', TOOLS)
@torch.no_grad()
def test_graph_computes_what_the_model_does(network, x, tool):
    # Fills the caches of quantized weights, which are no part of a graph.
    network(x)
    graph = tool(network, x)
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(graph(x), network(x))


@pytest.mark.slow
@pytest.mark.parametrize('tool', TOOLS)
@torch.no_grad()
def test_graph_of_a_detector_computes_what_it_does(detector, tool):
    x = torch.randn(1, 3, 64, 64)
    graph = tool(detector, x)
    torch.testing.assert_close(graph(x), detector(x), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_trace_reads_the_weights_it_shares(x):
    network = make_network()
    network(x)
    traced = torch.jit.trace(network, x)
    before = traced(x)
    network[0].weight.neg_()
    torch.testing.assert_close(traced(x), network(x))
    assert not torch.equal(traced(x), before)


def test_trace_has_the_gradients(network, x):
    traced = torch.jit.trace(network, x)
    found = []
    for model in (traced, network):
        network.zero_grad()
        model(x).square().sum().backward()
        found.append([p.grad for p in network.parameters()
                      if p.grad is not None])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_exported_graph_has_the_operations_of_torch_alone(x):
    program = torch.export.export(make_network(), (x, ))
    names = {str(node.target) for node in program.graph.nodes
             if node.op == 'call_function'}
    assert len(names) > 10
    assert all(name.startswith(('aten.', '<built-in')) for name in names)


def test_mmengine_counts_operations(x):
    found = get_model_complexity_info(
        make_network(), None, inputs=(x[:1], ), show_table=False,
        show_arch=False)
    assert found['flops'] > 8 * 27 * 16 * 16


def same(model):
    return model


def in_pickle(model):
    return pickle.loads(pickle.dumps(model))


def in_threads(model):
    def run(x):
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(model, x) for _ in range(8)]
        found = [one.result() for one in found]
        assert all(torch.equal(y, found[0]) for y in found)
        return found[0]
    return run


def in_inference_mode(model):
    return torch.inference_mode()(model)


def channels_last(model):
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return lambda x: model(x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize('use', [
    copy.deepcopy, in_pickle, nn.DataParallel, in_threads, in_inference_mode,
    channels_last
])
@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
def test_model_computes_the_same(network, x, use, training):
    network.train(training)
    expected = network(x)
    with torch.set_grad_enabled(training):
        found = use(network)(x)
        again = use(network)(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again, expected)
