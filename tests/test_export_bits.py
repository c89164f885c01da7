import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcq_mmdet.export import bits as bits_module
from lcq_mmdet.export.bits import pack_codes, packed_size, unpack_codes
from lcq_mmdet.quantization.weight import QuantizedWeight, encode

BITS = range(1, 9)


@st.composite
def codes_of_bits(draw):
    bits = draw(st.sampled_from(BITS))
    codes = draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    return np.array(codes, np.uint8), bits


def pack_one_by_one(codes, bits):
    """The definition of the stream."""
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), 'little')


@given(codes_of_bits())
def test_stream_is_as_defined(case):
    codes, bits = case
    assert pack_codes(codes, bits).tobytes() == pack_one_by_one(codes, bits)


@given(codes_of_bits())
def test_codes_come_back(case):
    codes, bits = case
    stream = pack_codes(codes, bits)
    assert len(stream) == packed_size(len(codes), bits)
    unpacked = unpack_codes(stream, bits, len(codes))
    assert unpacked.dtype == np.uint8
    np.testing.assert_array_equal(unpacked, codes)


@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize('extra', [-1, 0, 1, 9])
def test_blocks_fit_together(bits, extra):
    count = 2 * 8 * bits_module._BLOCK + extra
    codes = np.random.default_rng(0).integers(0, 2**bits, count, np.uint8)
    stream = pack_codes(codes, bits)
    assert stream.size == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack_codes(stream, bits, count), codes)


def patterns(values):
    return np.asarray(values, np.float32).view(np.int32).tolist()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1,
                max_size=50))
def test_values_come_back_bit_by_bit(values):
    values = np.array(values, np.float32)
    coded = QuantizedWeight(*encode(values))
    assert patterns(coded.values()) == patterns(values)
    assert (np.diff(coded.codebook) >= 0).all()
    assert len(set(patterns(coded.codebook))) == len(coded.codebook)


def test_negative_zero_is_kept():
    codes, codebook = encode(np.array([0., 1., -0., -1.], np.float32))
    assert patterns(codebook) == patterns([-1., -0., 0., 1.])
    assert codes.tolist() == [2, 3, 1, 0]


def test_too_many_values_are_refused():
    assert len(encode(np.arange(256, dtype=np.float32))[1]) == 256
    with pytest.raises(ValueError, match='257 different values'):
        encode(np.arange(257, dtype=np.float32))


@pytest.mark.parametrize('codebook', [[0., 1., 2.], []])
def test_code_outside_the_codebook_is_refused(codebook):
    codes = np.array([0, 1, 3], np.uint8)
    with pytest.raises(ValueError, match='code 3 is outside the codebook'):
        QuantizedWeight(codes, np.array(codebook, np.float32)).values()
