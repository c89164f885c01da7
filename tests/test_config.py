import pytest

from lcq_mmdet import LCQError, QuantizerConfig


@pytest.mark.parametrize('options, message', [
    (dict(bits=1), 'bits=1: must be an integer from 2 to 8'),
    (dict(weight_bits=9), 'weight_bits=9: must be an integer from 2 to 8'),
    (dict(act_bits=4.0), r'act_bits=4\.0: must be an integer from 2 to 8'),
    (dict(quantizer='pact'), "quantizer='pact': must be one of 'lcq', 'uni"),
    (dict(init='minmax'), "init='minmax': must be one of 'lloyd_max', 'mse'"),
    (dict(weight_norm=True), "weight_norm=True: must be one of 'std'"),
    (dict(num_intervals=1), 'num_intervals=1: must be an integer of 2'),
    (dict(init_clip=0), 'init_clip=0: must be a positive'),
    (dict(out_bits=9), 'out_bits=9: must be an integer from 2 to 8'),
    (dict(out_bits=3), 'out_bits=3: must be None or no less than weight_bit'),
    (dict(out_bits=6, act_bits=8), 'out_bits=6: must be .* than act_bits=8'),
    (dict(bit=4), 'bit=4: no such option; there are bits, weight_bits'),
])
def test_mistake_is_named_in_one_line(options, message):
    with pytest.raises(LCQError, match=message) as info:
        QuantizerConfig().updated(options)
    assert '\n' not in str(info.value)


def test_bits_stands_for_what_is_not_given():
    config = QuantizerConfig().updated(dict(bits=3, act_bits=8))
    assert (config.weight_bits, config.act_bits) == (3, 8)
