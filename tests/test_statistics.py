"""Statistics of a quantizer against scalar sums and over several calls."""
import math
from collections import Counter

import pytest
import torch
from oracle import lcq

from lcq_mmdet import LCQQuantizer, QuantizerConfig
from lcq_mmdet.functional import sample_stride
from lcq_mmdet.report.statistics import QuantizerStatistics

QUANTIZERS = {
    'unsigned': (dict(), False, False),
    'offset': (dict(), False, True),
    'symmetric': (dict(signed_act='symmetric'), False, True),
    'weight': (dict(), True, True),
    'weight_plain': (dict(weight_norm='none'), True, True),
    'ternary': (dict(weight_bits=2), True, True),
}


def make_quantizer(x, is_weight=False, signed=False, **options):
    """A quantizer that clips some values and whose compander is steep."""
    quantizer = LCQQuantizer(QuantizerConfig(**options), is_weight)
    quantizer.initialize_(x, signed)
    with torch.no_grad():
        quantizer.clip *= 0.7
        quantizer.theta += torch.linspace(1, -1, len(quantizer.theta))
    return quantizer


def statistics_of(quantizer, *calls):
    statistics = QuantizerStatistics(quantizer)
    for x in calls:
        statistics.update(x, quantizer(x))
    return {key: value.item() for key, value in statistics.result().items()}


def expected_statistics(quantizer, x):
    """The statistics, element by element in float64."""
    x = x.double().flatten().tolist()
    clip, theta = quantizer.clip.item(), quantizer.theta.tolist()
    offset, mean, scale = 0., 0., 1.
    if quantizer.weight_norm != 'none':
        center = sum(x) / len(x)
        scale = math.sqrt(sum((v - center)**2 for v in x) / len(x))
    symmetric = quantizer.is_signed and quantizer.offset is None
    if quantizer.is_signed and not symmetric:
        offset = quantizer.offset.item()
    normalized = [(v - mean) / scale - offset for v in x]
    y = lcq(normalized, [0.] * len(x), clip, theta, quantizer.bits,
            symmetric).y
    quantized = [scale * (v + offset) for v in y]
    shares = [n / len(x) for n in Counter(round(v, 5) for v in y).values()]
    lowest = -clip if symmetric else 0.
    total = sum(math.exp(t) for t in theta)
    slopes = [len(theta) * math.exp(t) / total for t in theta]
    expected = dict(
        clip=clip,
        max_slope=max(slopes),
        min_slope=min(slopes),
        error=sum(
            (a - b)**2 for a, b in zip(quantized, x)) / sum(v**2 for v in x),
        level_use=math.exp(-sum(p * math.log(p) for p in shares)) /
        (2**quantizer.bits - symmetric),
        clipped=sum(not lowest <= v <= clip for v in normalized) / len(x))
    if offset:
        expected['offset'] = offset
    return expected


@pytest.mark.parametrize(
    'options, is_weight, signed', QUANTIZERS.values(), ids=QUANTIZERS)
def test_statistics_match_scalar_sums(options, is_weight, signed):
    x = torch.randn(6, 5, 7, 3) + 0.2
    x = x if signed else x.relu()
    quantizer = make_quantizer(x, is_weight, signed, **options)
    expected = expected_statistics(quantizer, x)
    assert 0 < expected['clipped'] < 1 < expected['max_slope']
    assert statistics_of(quantizer, x) == pytest.approx(expected, rel=1e-4)


def test_uniform_use_of_all_levels_is_one_and_of_one_is_least():
    x = torch.arange(16.)
    quantizer = LCQQuantizer(
        QuantizerConfig(init='constant', init_clip=15.), is_weight=False)
    quantizer.initialize_(x, signed=False)
    result = statistics_of(quantizer, x)
    assert result['level_use'] == pytest.approx(1)
    assert result['error'] == pytest.approx(0, abs=1e-9)
    assert result['max_slope'] == result['min_slope'] == 1
    assert statistics_of(quantizer, x[3:4])['level_use'] == 1 / 16


@pytest.mark.parametrize('num_values', [
    0, 1, 2**15, 2**15 + 1, 3 * 2**15, 1023, 2**24, 16 * 64 * 168 * 100,
    2 * 3 * 5 * 7 * 11 * 13 * 17 * 19
])
def test_stride_takes_few_samples_and_visits_every_column(num_values):
    stride = sample_stride(num_values, 2**15)
    assert len(range(0, num_values, stride)) <= 2**15
    if num_values:
        assert math.gcd(stride, num_values) == 1
        assert len(range(0, num_values, stride)) >= min(num_values, 2**14)


def test_channels_are_normalized_one_by_one():
    x = torch.randn(6, 5, 7, 3)
    quantizer = make_quantizer(x, True, True, weight_norm='channel')
    expected = statistics_of(quantizer, x)
    factors = 2.**torch.arange(-3, 3).view(6, 1, 1, 1)
    result = statistics_of(quantizer, factors * x)
    for key in ('level_use', 'clipped'):
        assert result[key] == pytest.approx(expected[key])


@pytest.mark.parametrize('norm', ['std', 'none'])
def test_large_weight_is_normalized_as_a_whole(norm):
    # Every sample lies in the small part, whose deviation is another one.
    x = torch.full((2**17, ), 50.) * torch.randn(2**17).sign()
    stride = sample_stride(len(x), 2**15)
    x[::stride] = torch.randn(len(x[::stride])) + 3
    quantizer = make_quantizer(x, True, True, weight_norm=norm)
    result = statistics_of(quantizer, x)
    assert result['clipped'] == 0
    y = quantizer(x)[::stride]
    error = ((y - x[::stride])**2).sum() / (x[::stride]**2).sum()
    assert result['error'] == pytest.approx(error.item(), rel=1e-4)


def test_calls_are_taken_together():
    x = torch.randn(7, 30).relu()
    quantizer = make_quantizer(x)
    assert statistics_of(quantizer, x[:5], x[5:]) == pytest.approx(
        statistics_of(quantizer, x), rel=1e-5)


def test_calls_count_by_their_number_of_values():
    quantizer = make_quantizer(torch.rand(100))
    large = torch.zeros(2**19)
    small = torch.full((2**17, ), 9.)
    assert statistics_of(quantizer, large, small)['clipped'] == pytest.approx(
        0.2, rel=1e-3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_does_not_overflow(dtype):
    x = 60 * torch.randn(40, 100).relu()
    quantizer = make_quantizer(x)
    expected = statistics_of(quantizer, x.to(dtype).float())
    assert statistics_of(quantizer, x.to(dtype)) == pytest.approx(
        expected, rel=2e-2)


def test_zeros_have_no_error():
    quantizer = make_quantizer(torch.rand(100))
    assert statistics_of(quantizer, torch.zeros(9))['error'] == 0


@pytest.mark.parametrize('name', ['unsigned', 'offset', 'symmetric'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_not_finite_input_gives_not_finite_error(name, value):
    options, is_weight, signed = QUANTIZERS[name]
    x = torch.randn(50) if signed else torch.rand(50)
    quantizer = make_quantizer(x, is_weight, signed, **options)
    x[7] = value
    result = statistics_of(quantizer, x)
    assert math.isnan(result['error'])
    assert 0 < result['level_use'] <= 1


def test_empty_call_changes_nothing():
    x = torch.rand(100)
    quantizer = make_quantizer(x)
    assert statistics_of(quantizer, x, x[:0]) == statistics_of(quantizer, x)


def test_no_call_gives_nothing():
    assert QuantizerStatistics(make_quantizer(torch.rand(9))).result() == {}


def test_learned_values_are_those_of_the_call():
    x = torch.rand(100)
    quantizer = make_quantizer(x)
    statistics = QuantizerStatistics(quantizer)
    statistics.update(x, quantizer(x))
    expected = quantizer.clip.item()
    with torch.no_grad():
        quantizer.clip += 1
    assert statistics.result()['clip'] == expected


@pytest.mark.parametrize(
    'options, is_weight, signed', QUANTIZERS.values(), ids=QUANTIZERS)
def test_no_value_is_read_on_the_host(options, is_weight, signed):
    """On the meta device there is none to read."""
    x = torch.randn(2**10, 2**6)
    quantizer = make_quantizer(x if signed else x.relu(), is_weight, signed,
                               **options).to('meta')
    x = x.to('meta')
    statistics = QuantizerStatistics(quantizer)
    statistics.update(x, torch.empty_like(x))
    result = statistics.result()
    assert {tuple(value.shape) for value in result.values()} == {()}
    with pytest.raises(RuntimeError):
        result['clip'].item()
