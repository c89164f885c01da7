"""Levels that are rounded to integers times a step."""
import copy

import numpy as np
import onnx
import pytest
import torch
from exporting import make_config, make_model

from lcq_mmdet import LCQQuantizer, QuantizerConfig
from lcq_mmdet.export.graphs import export_onnx
from lcq_mmdet.export.graphs.builder import with_outputs
from lcq_mmdet.export.graphs.grid import Grid, table, weight_step
from lcq_mmdet.export.graphs.session import Graph
from lcq_mmdet.functional import round_to_grid
from lcq_mmdet.quantization.layers import lcq_layers

WEIGHTS = [(norm, signed) for norm in ('std', 'channel', 'none')
           for signed in ('offset', 'symmetric')]


def make(is_weight, signed=True, out_bits=8, **options):
    """The same quantizer with and without ``out_bits``, and values for it."""
    config = QuantizerConfig().updated(dict(options, out_bits=out_bits))
    x = torch.randn(6, 5, 3, 3)
    x = x if signed else x.relu()
    rounded = LCQQuantizer(config, is_weight)
    rounded.initialize_(x, signed)
    rounded.theta.data.normal_()
    plain = copy.deepcopy(rounded)
    plain.config = config.updated(dict(out_bits=None))
    return rounded, plain, x


def check_codes(values, step, lowest, highest):
    codes = values / step
    assert (codes - codes.round()).abs().max() < 1e-3
    assert (codes.round() >= lowest).all() and (codes.round() <= highest).all()


@pytest.mark.parametrize('bits, out_bits', [(2, 8), (4, 5), (8, 8)])
@pytest.mark.parametrize('norm, signed', WEIGHTS)
def test_weights_are_signed_integers(norm, signed, bits, out_bits):
    rounded, plain, w = make(True, bits=bits, out_bits=out_bits,
                             weight_norm=norm, signed_weight=signed)
    step = torch.from_numpy(weight_step(rounded, w))
    largest = 2**(out_bits - 1) - 1
    check_codes(rounded(w), step, -largest, largest)
    assert ((rounded(w) - plain(w)).abs() <= 0.501 * step).all()
    assert len(rounded.factors(w)[0].unique()) <= rounded.num_levels


@pytest.mark.parametrize('bits, out_bits', [(2, 8), (3, 4), (8, 8)])
@pytest.mark.parametrize('signed, how', [
    (False, 'offset'), (True, 'offset'), (True, 'symmetric')])
def test_inputs_are_integers_above_a_zero_point(signed, how, bits, out_bits):
    rounded, plain, x = make(False, signed, bits=bits, out_bits=out_bits,
                             signed_act=how)
    grid = Grid.of(rounded, out_bits)
    check_codes(rounded(x), grid.step, -grid.zero_point,
                2**out_bits - 1 - grid.zero_point)
    assert ((rounded(x) - plain(x)).abs() <= 0.501 * grid.step).all()


@pytest.mark.parametrize('is_weight', [True, False])
def test_gradients_are_those_without(is_weight):
    rounded, plain, x = make(is_weight, bits=3)
    dy = torch.randn_like(x)
    grads = []
    for quantizer in (rounded, plain):
        leaf = x.clone().requires_grad_()
        y = quantizer(leaf)
        grads.append(torch.autograd.grad(
            y, [leaf, *quantizer.parameters()], dy))
    assert not torch.equal(rounded(x), plain(x))
    for one, other in zip(*grads):
        assert torch.equal(one, other)


def test_half_precision_is_kept():
    rounded, plain, x = make(False, bits=4)
    y = rounded(x.bfloat16())
    assert y.dtype == torch.bfloat16
    expected = rounded.requantize(plain(x.bfloat16().float()))
    assert torch.equal(y, expected.bfloat16())


def test_not_a_number_stays():
    x = torch.tensor([float('nan'), 9.])
    y = round_to_grid(x, torch.tensor(0.5), -8, 7)
    assert y[0].isnan() and y[1] == 3.5


@torch.no_grad()
@pytest.mark.parametrize('options', [
    dict(bits=2), dict(bits=4, signed_act='symmetric'),
    dict(bits=4, first_layer_bits=None, out_bits=6, last_layer_bits=None),
    dict(bits=3, quantizer='lsq')],
    ids=['W2A2', 'symmetric', '6 bits', 'LSQ'])
def test_exact_integers_have_the_levels_of_training(options, tmp_path):
    """What 8-bit layers read and multiply by is bit by bit what torch has."""
    cfg = make_config(**{'out_bits': 8, **options})
    model = make_model(cfg)
    for _, layer in lcq_layers(model):
        quantizer = layer.act_quantizer
        source, bits = Grid.of(quantizer), quantizer.config.out_bits
        levels = Grid.of(quantizer, bits)
        found = levels.values()[table(source, levels, quantizer)]
        expected = quantizer(torch.from_numpy(source.values())).numpy()
        np.testing.assert_array_equal(found, expected)
        weight = layer.quantized_weight().numpy()
        step = weight_step(layer.weight_quantizer, layer.weight)
        np.testing.assert_array_equal(
            np.rint(weight / step).astype(np.float32) * step, weight)
    path = str(tmp_path / 'model.onnx')
    images = [torch.randn(1, 3, 64, 64)]
    export_onnx(model, path, cfg.to_dict(), int8='exact', images=images)
    assert_inputs_are_levels(path, model)


def assert_inputs_are_levels(path, model):
    graph = onnx.load(path)
    layers = dict(lcq_layers(model))
    reads = {
        node.name.rpartition('/')[0]: node.input[0]
        for node in graph.graph.node if node.op_type == 'Conv'
    }
    keys = {name: reads[name] for name in layers}
    run = Graph(*with_outputs(graph, sorted(set(keys.values()))))
    found = dict(zip(run.outputs, run(torch.randn(1, 3, 64, 64))))
    for name, key in keys.items():
        quantizer = layers[name].act_quantizer
        values = torch.from_numpy(Grid.of(quantizer).values())
        assert np.isin(found[key].numpy(), quantizer(values).numpy()).all()
