"""Quantized tensors are recomputed in the backward pass, not saved."""
import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from test_kernels import triton_kernel  # noqa: F401
from test_mmcv_layers import ALL, make
from torch import nn
from torch.utils.checkpoint import checkpoint

from lcq_mmdet import convert_, kernels, recompute
from lcq_mmdet.quantization import layers as layers_module
from lcq_mmdet.quantization import mmcv_layers
from lcq_mmdet.quantization.calibration import initialize_, observe


@pytest.fixture(autouse=True)
def small_tensors(monkeypatch):
    """Tensors of any size are recomputed."""
    monkeypatch.setattr(recompute, 'MIN_SIZE', 0)


@pytest.fixture
def keeping(monkeypatch):
    """A function after which quantized tensors are saved, for comparison."""

    def keep():
        for module in (layers_module, mmcv_layers):
            monkeypatch.setattr(module, 'recomputing',
                                lambda *tensors: nullcontext())

    return keep


def watch_input(layer):
    """Refer weakly to what the layer's input quantizer gives."""
    seen = []
    layer.act_quantizer.register_forward_hook(
        lambda module, args, y: seen.append(weakref.ref(y)))
    return seen


def gradients(run, model, inputs):
    model.zero_grad()
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = run(model, *leaves)
    out.square().sum().backward()
    return [None if t.grad is None else t.grad.clone()
            for t in (*leaves, *model.parameters())]


def assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a is b is None or torch.equal(a, b)
    assert any(a is not None and a.any() for a in one)


# What these multiply is a padded copy, which they keep.
PADDED = 'adaptive_padding', 'small_deformable'


@ALL
def test_every_kind_of_layer_recomputes_its_input(kind, keeping):
    _, layer, inputs = make(kind)
    seen = watch_input(layer)
    out = layer(*[x.requires_grad_() for x in inputs])
    gc.collect()  # What numba compiles for the first time holds frames.
    assert out.requires_grad and seen[0]() is None
    found = gradients(lambda m, *x: m(*x), layer, inputs)
    keeping()
    seen.clear()
    out = layer(*inputs)
    assert (seen[0]() is None) == (kind in PADDED)
    assert_equal(found, gradients(lambda m, *x: m(*x), layer, inputs))


@pytest.mark.parametrize('kind', ['wrapper', 'adaptively_standardized'])
@pytest.mark.parametrize('options', [
    dict(), dict(weight_norm='channel'), dict(out_bits=8)
], ids=str)
def test_nothing_is_left_of_a_step(kind, options):
    _, layer, inputs = make(kind, **options)

    def count_tensors():
        layer(*inputs).square().sum().backward()
        layer.zero_grad()
        gc.collect()
        return sum(torch.is_tensor(o) for o in gc.get_objects())

    count_tensors()
    assert count_tensors() == count_tensors()


def make_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3),
        nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 3, 9, 8)
    convert_(model, bits=3, modules=['*'])
    with observe(model) as observations:
        model(x)
    initialize_(model, observations)
    return model, x


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointing_gives_the_same_gradients(reentrant):
    model, x = make_network()
    expected = gradients(lambda m, x: m(x), model, [x])
    assert_equal(expected, gradients(
        lambda m, x: checkpoint(m, x, use_reentrant=reentrant), model, [x]))


def test_checkpointing_small_inputs_and_large_weights(monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 8, 1))
    x = torch.randn(1, 256, 8, 8)
    assert x.numel() < recompute.MIN_SIZE < model[0].weight.numel()
    convert_(model, bits=3, modules=['*'])
    with observe(model) as observations:
        model(x)
    initialize_(model, observations)
    expected = gradients(lambda m, x: m(x.clone()), model, [x])
    for _ in range(2):
        assert_equal(expected, gradients(
            lambda m, x: checkpoint(m, x.clone(), use_reentrant=False),
            copy.deepcopy(model), [x]))


def test_inference_mode_and_inputs_without_gradient():
    model, x = make_network()
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), model(x))
    loss = model.train()(x).sum()
    seen = weakref.ref(x)
    del x
    loss.backward()
    assert seen() is None


def test_second_backward_pass_gives_the_same_gradients():
    model, x = make_network()
    out = model(x).square().sum()
    out.backward(retain_graph=True)
    first = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    out.backward()
    second = [p.grad for p in model.parameters() if p.grad is not None]
    assert_equal(first, second)


@pytest.mark.parametrize('change', [
    lambda x: x.to(memory_format=torch.channels_last),
    lambda x: x[..., ::2], lambda x: x.transpose(2, 3)])
def test_layouts(change, keeping):
    model, x = make_network()
    x = change(torch.randn(2, 3, 12, 16))
    found = gradients(lambda m, x: m(x), model, [x])
    keeping()
    assert_equal(found, gradients(lambda m, x: m(x), model, [x]))


def test_autocast(keeping):
    model, x = make_network()

    def run(model, x):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            return model(x)

    found = gradients(run, model, [x])
    keeping()
    assert_equal(found, gradients(run, model, [x]))


def test_cuda_kernel_recomputes_its_input(triton_kernel,  # noqa: F811
                                          keeping):
    model, x = make_network()
    seen = watch_input(model[2])
    model(x)
    assert seen[0]() is None
    found = gradients(lambda m, x: m(x), model, [x])
    assert_equal(found, gradients(
        lambda m, x: checkpoint(m, x, use_reentrant=False), model, [x]))
    keeping()
    assert_equal(found, gradients(lambda m, x: m(x), model, [x]))


def test_reference_keeps_what_it_gives():
    model, x = make_network()
    expected = gradients(lambda m, x: m(x), copy.deepcopy(model), [x])
    kernels.use('reference')
    try:
        seen = watch_input(model[2])
        out = model(x)
        assert seen[0]() is not None and out.requires_grad
        found = gradients(lambda m, x: m(x), model, [x])
    finally:
        kernels.use('auto')
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ['wrapper', 'linear'])
def test_weight_is_recomputed(kind, keeping):
    _, layer, inputs = make(kind)
    values = []
    layer.weight_quantizer.register_forward_hook(
        lambda module, args, y: values.append(weakref.ref(y)))

    def step():
        layer.zero_grad()
        values.clear()
        outs = [layer(*inputs) for _ in range(2)]
        gc.collect()
        alive = [value() is not None for value in values]
        sum(out.square().sum() for out in outs).backward()
        return alive, [p.grad.clone() for p in layer.parameters()]

    alive, found = step()
    assert alive == [False, False]
    keeping()
    alive, expected = step()
    assert alive == [True, True]
    assert_equal(found, expected)
