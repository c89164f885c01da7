"""The quantized weight of a layer: its gradients, and never a stale one."""
import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lcq_mmdet import LCQConv2d, QuantizerConfig


@pytest.fixture
def layer():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    layer = LCQConv2d.from_float(conv, QuantizerConfig())
    layer.act_quantizer.initialize_(torch.randn(1000), signed=True)
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    return layer


@pytest.fixture
def calls(layer):
    """Gets one element each time the layer quantizes its weight."""
    calls = []
    layer.weight_quantizer.register_forward_hook(
        lambda *arguments: calls.append(arguments))
    return calls


def separately(layer, inputs):
    """Gradients of the sum of all outputs, with nothing shared."""
    other = copy.deepcopy(layer)
    for x in inputs:
        other.train()
        other(x).square().sum().backward()
    return gradients(other)


def gradients(layer):
    grads = {name: p.grad for name, p in layer.named_parameters()}
    layer.zero_grad()
    return grads


def assert_close(ours, same):
    for name, grad in same.items():
        torch.testing.assert_close(ours[name], grad, msg=name)


def test_calls_in_evaluation_share_the_weight(layer, calls):
    layer.eval()
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x))
    assert len(calls) == 1
    assert layer(x).requires_grad and len(calls) == 2


@pytest.mark.parametrize('change', [
    lambda layer: layer.weight.neg_(),
    lambda layer: layer.weight_quantizer.clip.mul_(2),
    lambda layer: layer.weight_quantizer.offset.add_(1),
    lambda layer: layer.load_state_dict(
        {k: -v if k == 'weight' else v
         for k, v in layer.state_dict().items()}),
    lambda layer: layer.double(),
    lambda layer: setattr(layer.weight_quantizer, 'bypass', True),
    # As averages of weights are swapped in, before eval() is called.
    lambda layer: (layer.weight.data.neg_(), layer.eval()),
], ids=['weight', 'clip', 'offset', 'load', 'dtype', 'bypass', 'swap'])
@torch.no_grad()
def test_cached_weight_is_never_stale(layer, change):
    layer.eval()
    before = layer.quantized_weight()
    change(layer)
    after = layer.quantized_weight()
    assert torch.equal(after, layer.weight_quantizer(layer.weight))
    assert after.dtype != before.dtype or not torch.equal(after, before)


@torch.no_grad()
def test_memory_of_a_replaced_weight_is_held_until_it_is_noticed(layer):
    layer.eval().quantized_weight()
    memory = weakref.ref(layer.weight.untyped_storage())
    # Else a third weight could be there, and look like the first.
    layer.weight.data = -layer.weight
    assert memory() is not None
    layer.quantized_weight()
    assert memory() is None


def test_layer_made_in_inference_mode_is_quantized_at_each_call():
    with torch.inference_mode():
        layer = LCQConv2d(4, 4, 3, config=QuantizerConfig(init='constant'))
        layer.weight_quantizer.initialize_(layer.weight, signed=True)
        before = layer.eval().quantized_weight()
        layer.weight.neg_()
        assert not torch.equal(layer.quantized_weight(), before)


def test_shared_layer_has_the_gradients_of_all_its_calls(layer):
    inputs = torch.randn(3, 2, 4, 5, 5)
    expected = separately(layer, inputs)
    sum(layer(x).square().sum() for x in inputs).backward()
    assert_close(gradients(layer), expected)


@pytest.mark.parametrize('order', ['alternating', 'forward_first'])
def test_gradients_accumulate_without_a_step(layer, order):
    inputs = torch.randn(2, 2, 4, 5, 5)
    expected = separately(layer, inputs)
    if order == 'alternating':
        for x in inputs:
            layer(x).square().sum().backward()
    else:
        for loss in [layer(x).square().sum() for x in inputs]:
            loss.backward()
    assert_close(gradients(layer), expected)


@pytest.mark.parametrize('options', [
    dict(), dict(weight_norm='channel'), dict(out_bits=8)
], ids=str)
def test_hooks_of_the_weight_see_its_gradient_once(options):
    layer = LCQConv2d(4, 4, 3, config=QuantizerConfig().updated(options))
    layer.act_quantizer.initialize_(torch.randn(1000), signed=True)
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    x = torch.randn(2, 4, 5, 5)
    expected = separately(layer, [x])['weight']
    layer.weight.register_hook(lambda grad: 2 * grad)
    for _ in range(3):
        layer(x).square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, 2 * expected)
        layer.zero_grad()


@pytest.mark.parametrize('change', ['step', 'data'])
def test_weight_is_quantized_anew_after_a_step(layer, calls, change):
    x = torch.randn(2, 4, 5, 5)
    before = layer(x)
    before.sum().backward()
    if change == 'step':
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
    else:
        # As some optimizers do, which the tensor's version does not show.
        layer.weight.data.mul_(-1)
    assert not torch.equal(layer(x), before) and len(calls) == 2


def test_weight_that_changes_before_backward_is_refused(layer):
    y = layer(torch.randn(2, 4, 5, 5))
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace'):
        y.sum().backward()


def test_frozen_weight_has_no_gradient(layer):
    layer.weight.requires_grad_(False)
    layer.weight_quantizer.theta.requires_grad_(False)
    layer(torch.randn(2, 4, 5, 5)).sum().backward()
    grads = gradients(layer)
    missing = {name for name, grad in grads.items() if grad is None}
    assert missing == {'weight', 'weight_quantizer.theta'}


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_gradient_checkpointing_changes_nothing(layer, calls, use_reentrant):
    inputs = torch.randn(2, 2, 4, 5, 5)
    expected = separately(layer, inputs)
    for x in inputs.requires_grad_():
        first = checkpoint(layer, x, use_reentrant=use_reentrant)
        second = checkpoint(layer, x, use_reentrant=use_reentrant)
        ((first + second) / 2).square().sum().backward()
    assert_close(gradients(layer), expected)


@pytest.mark.parametrize('copied', [copy.deepcopy,
                                    lambda m: pickle.loads(pickle.dumps(m))],
                         ids=['deepcopy', 'pickle'])
def test_copy_in_the_middle_of_a_step(layer, copied):
    x = torch.randn(2, 4, 5, 5)
    y = layer(x)
    other = copied(layer)
    assert torch.equal(other(x), y)
    with torch.no_grad():
        other.weight.neg_()
    assert torch.equal(layer(x), y) and not torch.equal(other(x), y)


def test_compiled_layer_equals_the_layer(layer):
    x = torch.randn(2, 4, 5, 5)
    expected = separately(layer, [x])
    compiled = torch.compile(layer, backend='aot_eager')
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    y.square().sum().backward()
    assert_close(gradients(layer), expected)


def test_autocast_changes_no_quantized_weight(layer):
    layer.eval()
    with torch.no_grad():
        expected = layer.quantized_weight()
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(layer.train().quantized_weight(), expected)
