"""Settings of the quantizers, validated where they are written down."""
from dataclasses import dataclass, fields, replace
from typing import Any, Mapping, Optional, Tuple

from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import check_bits

#: Settings that name bits.
BITS_KEYS = ('bits', 'weight_bits', 'act_bits')
QUANTIZERS = ('lcq', 'uniform', 'lsq')
INITS = ('lloyd_max', 'mse', 'constant')
WEIGHT_NORMS = ('std', 'channel', 'none')
SIGNED = ('offset', 'symmetric')
# LSQ has none of these to choose; the defaults stand for what it does.
_NOT_OF_LSQ = dict(
    init=('lloyd_max', ),
    weight_norm=('std', 'none'),
    signed_weight=('offset', ),
    signed_act=('offset', ))


def check_choice(key: str, value: object, choices: Tuple[str, ...]) -> None:
    """Raise an ``LCQError`` that names the key unless value is a choice."""
    if not isinstance(value, str) or value not in choices:
        raise LCQError(f'{key}={value!r}: must be one of '
                       f'{", ".join(map(repr, choices))}')


@dataclass(frozen=True)
class QuantizerConfig:
    """What a layer's two quantizers are made from.

    Attributes:
        weight_bits: Bit-width of the weight, 2 to 8.
        act_bits: Bit-width of the input, 2 to 8.
        quantizer: ``'lcq'`` learns clip and theta; ``'uniform'`` holds theta
            at 0, which is the uniform quantizer with a learned clip and
            offset, as in LSQ+; ``'lsq'`` learns the step of LSQ, see
            :class:`~lcq_mmdet.LSQQuantizer`.
        num_intervals: Intervals of the compander, K, 2 or more.
        init: ``'lloyd_max'`` fits the compander to the Lloyd-Max levels of
            the calibration samples; ``'mse'`` takes the uniform quantizer
            with the least squared error; ``'constant'`` takes ``init_clip``
            and theta 0. A ``'uniform'`` quantizer knows no companding, and
            takes ``'mse'`` for ``'lloyd_max'``; ``'lsq'`` takes its own.
        init_clip: Positive clip of ``init='constant'``, in units of the
            input, for a normalized weight in units of its standard deviation.
        weight_norm: Limited weight normalization: ``'std'`` quantizes
            w / std(w) and multiplies the scale back; ``'channel'`` does so
            with the standard deviation of each output channel;
            ``'none'`` does neither, and is what ``'lsq'`` takes for
            ``'std'``.
        signed_weight: Levels of a weight: ``'offset'`` has all 2**bits, the
            lowest of them a learned offset; ``'symmetric'`` has 2**bits - 1,
            one of them 0 and the others in pairs of both signs. ``'lsq'``
            has 2**bits, of which 0 is one and one more is negative.
        signed_act: Levels of an input with negative values, likewise.
        out_bits: Bits of the integers that the levels of weight and input
            are rounded to in addition, so that a layer can be computed in
            them; from ``weight_bits`` and ``act_bits`` to 8. ``None`` leaves
            levels where they are. With as many bits as the quantizer has,
            neighbouring levels may become one.
        per_level: Whether a layer of a head that is shared over the levels
            of a feature pyramid quantizes the input of each level with a
            quantizer of its own. Other layers have one all the same.

    Raises:
        LCQError: If a value is outside its range; the message names key,
            value and range.

    Note:
        The levels of the paper are the symmetric ones. The default is LCQ
        with the learned offset of LSQ+ (Y. Bhalgat et al., CVPR Workshops
        2020), which has one level more: benchmarks/README.md compares both.
        The weight is not centered: where the mean is subtracted and not
        restored, 8 bits after calibration gave mAP 0.212, and 0.538 without
        it, where float had 0.539 (a small RetinaNet on generated data);
        fine-tuning makes up for that.
    """
    weight_bits: int = 4
    act_bits: int = 4
    quantizer: str = 'lcq'
    num_intervals: int = 16
    init: str = 'lloyd_max'
    init_clip: float = 3.0
    weight_norm: str = 'std'
    signed_weight: str = 'offset'
    signed_act: str = 'offset'
    out_bits: Optional[int] = None
    per_level: bool = False

    def __post_init__(self) -> None:
        check_bits(self.weight_bits, 'weight_bits')
        check_bits(self.act_bits, 'act_bits')
        check_choice('quantizer', self.quantizer, QUANTIZERS)
        check_choice('init', self.init, INITS)
        check_choice('weight_norm', self.weight_norm, WEIGHT_NORMS)
        check_choice('signed_weight', self.signed_weight, SIGNED)
        check_choice('signed_act', self.signed_act, SIGNED)
        if type(self.num_intervals) is not int or self.num_intervals < 2:
            raise LCQError(f'num_intervals={self.num_intervals!r}: must be an '
                           'integer of 2 or more')
        if (type(self.init_clip) not in (int, float)
                or not 0 < self.init_clip < float('inf')):
            raise LCQError(f'init_clip={self.init_clip!r}: must be a positive '
                           'number')
        if not isinstance(self.per_level, bool):
            raise LCQError(f'per_level={self.per_level!r}: must be True or '
                           'False')
        if self.quantizer == 'lsq':
            for key, fitting in _NOT_OF_LSQ.items():
                if getattr(self, key) not in fitting:
                    raise LCQError(f'{key}={getattr(self, key)!r}: '
                                   "quantizer='lsq' has its own; leave it "
                                   f'out, or set it to {fitting[-1]!r}')
        if self.out_bits is not None:
            check_bits(self.out_bits, 'out_bits')
            for key in ('weight_bits', 'act_bits'):
                if self.out_bits < getattr(self, key):
                    raise LCQError(
                        f'out_bits={self.out_bits!r}: must be None or no less '
                        f'than {key}={getattr(self, key)!r}')

    def updated(self, options: Mapping[str, Any],
                where: str = '') -> 'QuantizerConfig':
        """Return a copy with some settings changed.

        Args:
            options: Settings by name; ``bits`` stands for those of
                ``weight_bits`` and ``act_bits`` that are not given.
            where: What the settings belong to, for the error message.

        Raises:
            LCQError: If a setting is unknown or outside its range.
        """
        options = dict(options)
        known = [field.name for field in fields(self)]
        for key in options.keys() - {'bits', *known}:
            raise LCQError(f'{where}{key}={options[key]!r}: no such option; '
                           f'there are bits, {", ".join(known)}')
        if 'bits' in options:
            bits = check_bits(options.pop('bits'), f'{where}bits')
            options = {'weight_bits': bits, 'act_bits': bits, **options}
        try:
            return replace(self, **options)
        except LCQError as error:
            raise LCQError(f'{where}{error}') from None
