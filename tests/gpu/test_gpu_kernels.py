"""The kernel on the GPU against the reference on the same device."""
from contextlib import contextmanager

import pytest
import torch

from lcq_mmdet import LCQConv2d, QuantizerConfig
from lcq_mmdet.functional import lcq_quantize, lcq_quantize_reference
from lcq_mmdet.quantization.layers import lcq_layers

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: Bits, whether the levels are symmetric, and the offset.
QUANTIZERS = {
    'symmetric_2': (2, True, None),
    'unsigned_4': (4, False, None),
    'offset_3': (3, False, -0.9),
    'offset_8': (8, False, 0.1),
}
LAYOUTS = {
    'contiguous': lambda x: x,
    'channels_last': lambda x: x.to(memory_format=torch.channels_last),
    'transposed': lambda x: x.transpose(1, 3),
    'strided': lambda x: x[:, ::2],
    'expanded': lambda x: x[:1].expand(3, -1, -1, -1),
    'one_value': lambda x: x.flatten()[:1],
}


def gradients(function, x, dy, clip, theta, offset, bits, signed):
    """Value and gradients by label."""
    tensors = dict(x=x, clip=clip, theta=theta, offset=offset)
    tensors = {
        label: tensor.detach().requires_grad_()
        for label, tensor in tensors.items() if tensor is not None
    }
    y = function(tensors['x'], tensors['clip'], tensors['theta'], bits, signed,
                 tensors.get('offset'))
    y.backward(dy)
    return dict(
        {label: tensor.grad for label, tensor in tensors.items()},
        y=y.detach())


def parameters(device, offset):
    return (torch.tensor(1.7, device=device),
            torch.randn(16, device=device) * 0.5,
            None if offset is None else torch.tensor(offset, device=device))


@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('bits, signed, offset', QUANTIZERS.values(),
                         ids=QUANTIZERS)
def test_values_and_gradients_are_the_references(triton, bits, signed, offset,
                                                 dtype, layout):
    x = layout(torch.randn(3, 6, 7, 9, device=triton).to(dtype))
    dy = torch.randn(x.shape, device=triton).to(dtype)
    given = *parameters(triton, offset), bits, signed
    ours = gradients(lcq_quantize, x, dy, *given)
    same = gradients(lcq_quantize_reference, x.float(), dy.float(), *given)
    assert ours['y'].dtype == ours['x'].dtype == dtype
    assert ours['y'].stride() == (x + 1).stride()
    assert ours['y'].device.type == triton
    for label in ('y', 'x'):
        assert torch.equal(ours[label], same[label].to(dtype)), label
    # The reference's sums depend on their order.
    size = dy.float().abs().sum().item()
    for label in same.keys() - {'y', 'x'}:
        error = (ours[label] - same[label]).abs().max().item()
        assert error <= 2e-5 * (1 + size), (label, error)


def test_more_elements_than_32_bits_count(triton):
    """The CPU proves the test on fewer; see test_kernels.py for addresses."""
    size, part = 5003, 1000
    if triton == 'cuda':
        size, part = 2**31 + 4099, 2**26
        if torch.cuda.mem_get_info()[0] < 32 * 2**30:
            pytest.skip('needs 32 GiB of GPU memory')
    x = torch.empty(size, dtype=torch.bfloat16, device=triton).normal_()
    dy = torch.empty_like(x).normal_()
    clip, theta, offset = parameters(triton, -1.)
    ours = gradients(lcq_quantize, x, dy, clip, theta, offset, 4, False)
    sums = dict.fromkeys(('clip', 'theta', 'offset'), 0.)
    for start in range(0, size, part):
        piece = slice(start, start + part)
        same = gradients(lcq_quantize_reference, x[piece].float(),
                         dy[piece].float(), clip, theta, offset, 4, False)
        for label in ('y', 'x'):
            assert torch.equal(ours[label][piece],
                               same[label].bfloat16()), (label, start)
        for label in sums:
            sums[label] += same[label].double()
    for label, value in sums.items():
        # Signs are random: a sum of n terms is of the size of sqrt(n).
        error = (ours[label] - value).abs().max().item()
        assert error <= 1e-2 * size**0.5, (label, error)


def make_layer(device):
    layer = LCQConv2d(4, 8, 3, config=QuantizerConfig()).to(device)
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    layer.act_quantizer.initialize_(torch.randn(999, device=device).relu(),
                                    signed=False)
    assert [name for name, _ in lcq_layers(layer)] == ['']
    return layer


def layer_gradients(function, layer, x):
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = function(x)
    y.square().mean().backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters()
             if p.grad is not None}
    return dict(found, x=x.grad, y=y.detach())


def test_compiled_layer_gives_the_same(triton):
    layer = make_layer(triton)
    x = torch.randn(2, 4, 9, 9, device=triton).relu()
    # Inductor cannot look into the interpreter.
    compiled = torch.compile(
        layer, fullgraph=True,
        backend='inductor' if triton == 'cuda' else 'aot_eager')
    ours = layer_gradients(compiled, layer, x)
    same = layer_gradients(layer, layer, x)
    assert ours.keys() == same.keys() and len(same) >= 8
    for label, value in same.items():
        torch.testing.assert_close(
            ours[label], value, rtol=1e-4, atol=1e-5, msg=label)


@contextmanager
def no_waiting(device):
    """Raise where the host waits for the GPU."""
    if device == 'cpu':
        yield
        return
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_layer_never_waits_for_the_device(triton):
    layer = make_layer(triton)
    x = torch.randn(2, 4, 9, 9, device=triton)
    with no_waiting(triton):
        found = layer_gradients(layer, layer, x)
    assert all(value.isfinite().all() for value in found.values())


def test_layer_quantizes_half_precision_under_autocast(triton):
    layer = make_layer(triton)
    x = torch.randn(2, 4, 9, 9, device=triton).relu()
    with torch.autocast(triton, torch.bfloat16):
        found = layer_gradients(layer, layer, x)
    same = layer_gradients(layer, layer, x)
    assert found['y'].dtype == torch.bfloat16
    for label, value in same.items():
        error = (found[label].float() - value).norm() / value.norm()
        assert error < 0.05, (label, error)
