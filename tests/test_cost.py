"""Work, bit operations and bytes against numbers computed by hand."""
from collections import OrderedDict

import pytest
import torch
from torch import nn

from lcq_mmdet import convert_
from lcq_mmdet.report.cost import cost, count_macs, quantized_share

WORK = {
    # Positions of the output, channels of it, inputs of each.
    'plain': (nn.Conv2d(3, 8, (3, 5), padding=(1, 2)), (2, 3, 10, 10),
              2 * 100 * 8 * (3 * 15)),
    'grouped': (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 6, 6),
                16 * 8 * (2 * 9)),
    'strided': (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 9, 9),
                25 * 8 * (3 * 9)),
    'dilated': (nn.Conv2d(3, 8, 3, dilation=2), (1, 3, 9, 9),
                25 * 8 * (3 * 9)),
    # Positions of the input, channels of it, outputs of each.
    'transposed': (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
                   (1, 4, 5, 5), 25 * 4 * (3 * 9)),
    'linear': (nn.Linear(7, 5), (2, 3, 7), 6 * 5 * 7),
}


@pytest.mark.parametrize('layer, shape, expected', WORK.values(), ids=WORK)
def test_work_of_a_layer(layer, shape, expected):
    model = nn.Sequential(OrderedDict(layer=layer, act=nn.ReLU()))
    with count_macs(model) as macs:
        model(torch.rand(shape))
    assert macs == {'layer': expected}


@pytest.mark.parametrize('options, expected', [
    (dict(), {'attention.in_proj_weight': 64 * (10 + 6 + 6)}),
    (dict(kdim=4, vdim=2), {
        'attention.q_proj_weight': 64 * 10,
        'attention.k_proj_weight': 32 * 6,
        'attention.v_proj_weight': 16 * 6
    }),
])
def test_work_of_the_projections_of_attention(options, expected):
    model = nn.Module()
    model.attention = nn.MultiheadAttention(8, 2, **options)
    key = torch.rand(3, 2, options.get('kdim', 8))
    value = torch.rand(3, 2, options.get('vdim', 8))
    with count_macs(model) as macs:
        model.attention(torch.rand(5, 2, 8), key=key, value=value)
    assert macs == {**expected, 'attention.out_proj': 64 * 10}


def test_look_up_is_no_work():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    with count_macs(model) as macs:
        model(torch.tensor([1, 2]))
    assert macs == {'1': 2 * 3 * 2}


def test_shared_layer_counts_each_call_and_counting_ends():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(OrderedDict(one=layer, act=nn.ReLU(), two=layer))
    with count_macs(model) as macs:
        model(torch.rand(1, 3))
    model(torch.rand(1, 3))
    assert macs == {'one': 2 * 9}


def test_counting_ends_when_forward_fails():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        with count_macs(model):
            model(torch.rand(1, 4))
    assert not model[0]._forward_hooks


@pytest.fixture
def model():
    """A float layer, and one with weights of 3 and inputs of 5 bits."""
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4),
            conv=nn.Conv2d(4, 5, 1)))
    convert_(model, modules=['conv'], weight_bits=3, act_bits=5)
    model.conv.act_quantizer.bypass = True
    model.conv.weight_quantizer.bypass = True
    return model


def test_cost_of_an_image(model):
    with count_macs(model) as macs:
        model(torch.rand(2, 3, 4, 4))
    result = cost(model, macs, num_images=2)
    stem, conv = 16 * 3 * 4, 16 * 4 * 5
    assert result.macs == stem + conv
    assert result.quantized_share == conv / (stem + conv)
    assert result.bops == stem * 32 * 32 + conv * 3 * 5
    assert quantized_share(model, {}) == 0


def test_bytes_of_the_packed_model(model):
    float_values = (3 * 4 + 4) + 4 * 4 + 5  # stem, norm, bias of conv
    num_batches_tracked = 8
    weight = 8  # 20 times 3 bits are 7.5 bytes
    levels = 4 * (8 + 32)
    expected = 4 * float_values + num_batches_tracked + weight + levels
    assert cost(model, {}, 1).bytes == expected
    model.again = model.conv
    assert cost(model, {}, 1).bytes == expected


def test_bytes_of_a_float_model():
    assert cost(nn.Conv2d(3, 8, 3).half(), {}, 1).bytes == 2 * (3 * 8 * 9 + 8)


def test_symmetric_input_has_a_level_less(model):
    symmetric = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 5, 1)))
    offset = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 5, 1)))
    convert_(symmetric, modules=['conv'], signed_act='symmetric')
    convert_(offset, modules=['conv'])
    difference = cost(offset, {}, 1).bytes - cost(symmetric, {}, 1).bytes
    assert difference == 4
