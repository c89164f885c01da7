"""Which rows a sweep has, and what they are called."""
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import check_bits

FLOAT = 32


@dataclass(frozen=True)
class Row:
    """What one line of the report is about.

    Attributes:
        variant: ``'float'``, or what distinguishes the rows of one
            bit-width, such as the quantizer.
        bits: Bits of weights and inputs.
        seed: Seed of the fine-tuning; ``None`` without one.
    """
    variant: str = 'float'
    bits: Tuple[int, int] = (FLOAT, FLOAT)
    seed: Optional[int] = None

    @property
    def is_float(self) -> bool:
        return self.variant == 'float'

    @property
    def is_start(self) -> bool:
        """Whether it is the float detector that all others start from."""
        return self.is_float and self.seed is None

    @property
    def name(self) -> str:
        """What the row is called in a table, with :attr:`bits_text`."""
        if self.is_start:
            return 'float'
        how = 'calibrated' if self.seed is None else 'fine-tuned'
        return f'{self.variant}, {how}'

    @property
    def bits_text(self) -> str:
        return 'float' if self.is_float else '{}/{}'.format(*self.bits)

    @property
    def folder(self) -> str:
        """Name of the row's folder in the work directory."""
        if self.is_float:
            return 'float' if self.is_start else f'float_seed{self.seed}'
        how = 'calibrated' if self.seed is None else f'seed{self.seed}'
        return '{}_w{}a{}_{}'.format(self.variant, *self.bits, how)

    def label(self) -> Dict[str, Any]:
        """Return what identifies the row in a record."""
        return dict(
            name=self.name,
            bits=self.bits_text,
            variant=self.variant,
            weight_bits=self.bits[0],
            act_bits=self.bits[1],
            fine_tuned=self.seed is not None,
            seed=self.seed)


def pair_bits(bits: Optional[Sequence[Union[int, Tuple[int, int]]]],
              weight_bits: Optional[Sequence[int]],
              act_bits: Optional[Sequence[int]]) -> List[Tuple[int, int]]:
    """Combine lists of bit-widths, from the highest to the lowest.

    Args:
        bits: Bits of weights and inputs alike, or pairs of them; 32 stands
            for float, which is always evaluated.
        weight_bits: Bits of weights, paired with ``act_bits``.
        act_bits: Bits of inputs; one value goes with all of the others.

    Raises:
        LCQError: If a value is not 2 to 8 or the lists do not fit.
    """
    pairs = [_check_pair(value) for value in bits or () if value != FLOAT]
    weight, act = list(weight_bits or ()), list(act_bits or ())
    if len(weight) == 1 and act:
        weight *= len(act)
    if len(act) == 1 and weight:
        act *= len(weight)
    if len(weight) != len(act):
        raise LCQError(f'weight_bits={weight_bits!r} and act_bits='
                       f'{act_bits!r}: give both, with as many values')
    for value, other in zip(weight, act):
        pairs.append((check_bits(value, 'weight_bits'),
                      check_bits(other, 'act_bits')))
    return sorted(dict.fromkeys(pairs), reverse=True)


def _check_pair(value: Union[int, Tuple[int, int]]) -> Tuple[int, int]:
    if isinstance(value, tuple):
        where = 'bits=w{}a{}: '.format(*value)
        return (check_bits(value[0], f'{where}weight_bits'),
                check_bits(value[1], f'{where}act_bits'))
    try:
        return (check_bits(value), value)
    except LCQError as error:
        raise LCQError(f'{error}, or {FLOAT} for float') from None


def plan(widths: Sequence[Tuple[int, int]],
         variants: Iterable[str],
         seeds: Sequence[int],
         float_control: bool = False) -> List[Row]:
    """List the rows of a sweep in the order in which they run.

    Args:
        widths: Bits of weights and inputs.
        variants: Names of what is compared at each of them.
        seeds: Seeds of the fine-tuning; without one there is none.
        float_control: Whether to fine-tune the float detector, too, for as
            long as the quantized ones.
    """
    rows = [Row()]
    if float_control:
        rows += [Row(seed=seed) for seed in seeds]
    for bits in widths:
        for variant in variants:
            rows += [Row(variant, bits, seed) for seed in (None, *seeds)]
    return list(dict.fromkeys(rows))
