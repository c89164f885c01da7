"""The settings of a conversion, checked before there is a model."""
from dataclasses import dataclass, field, fields
from typing import Any, Dict, Mapping, Optional, Sequence

from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import check_bits
from lcq_mmdet.quantization.config import QuantizerConfig

from .patterns import check_pattern_types, matches


@dataclass(frozen=True)
class ConversionConfig:
    """What becomes of which layer.

    A pattern is a layer's or module's qualified name, in which ``*``, ``?``
    and ``[]`` match as in file names; it covers all that lies below.

    Attributes:
        modules: Patterns of what to quantize; ``None`` stands for all
            modules named ``backbone`` and ``neck``, at any depth.
        first_layer_bits: Bit-width of weight and input of the model's first
            convolution, 2 to 8; ``None`` treats it as any other. Its input,
            the image, keeps the quantizer that calibration gives it: data
            needs no gradient, and that of the largest map is expensive.
        last_layer_bits: Bit-width of weight and input of the layers whose
            output is a prediction, as :func:`~lcq_mmdet.conversion.
            predictors.is_last_layer` tells them; ``None`` treats them as any
            other.
        exclude: Patterns of what to leave in float all the same.
        overrides: Settings of some layers by pattern, such as
            ``{'neck': dict(bits=8)}``; later patterns win.
        default: Settings of layers that have none of their own.

    Raises:
        LCQError: If a value is of a wrong type or out of range.
    """
    modules: Optional[Sequence[str]] = None
    first_layer_bits: Optional[int] = 8
    last_layer_bits: Optional[int] = 8
    exclude: Sequence[str] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default: QuantizerConfig = QuantizerConfig()

    def __post_init__(self) -> None:
        for key in ('modules', 'exclude'):
            if getattr(self, key) is not None:
                check_pattern_types(key, getattr(self, key))
        for key in ('first_layer_bits', 'last_layer_bits'):
            if getattr(self, key) is not None:
                check_bits(getattr(self, key), key)
        if not isinstance(self.overrides, Mapping):
            raise LCQError(f'overrides={self.overrides!r}: must map patterns '
                           'to settings')
        check_pattern_types('overrides', list(self.overrides))
        for pattern, settings in self.overrides.items():
            if not isinstance(settings, Mapping):
                raise LCQError(f'overrides[{pattern!r}]={settings!r}: must be '
                               'a dictionary of settings')
            self.default.updated(settings, f'overrides[{pattern!r}].')

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> 'ConversionConfig':
        """Make one from the flat keys of a model's config.

        Args:
            options: Fields of this class and of :class:`QuantizerConfig`, and
                ``bits``; ``None`` for ``exclude`` or ``overrides`` stands
                for none.

        Raises:
            LCQError: If an option is unknown, of a wrong type or out of
                range.
        """
        own = {
            key: options[key]
            for key in _OWN_KEYS
            if key in options and not (options[key] is None
                                       and key in ('exclude', 'overrides'))
        }
        rest = {k: v for k, v in options.items() if k not in _OWN_KEYS}
        return cls(default=QuantizerConfig().updated(rest), **own)

    def to_options(self) -> Dict[str, Any]:
        """Return the flat keys: bits, and what differs from the defaults."""
        return {
            f.name: getattr(part, f.name)
            for part in (self, self.default) for f in fields(part)
            if f.name in ('weight_bits', 'act_bits') or f.name != 'default'
            and getattr(part, f.name) != getattr(type(part)(), f.name)
        }

    def of_layer(self, name: str,
                 bits: Optional[int] = None) -> QuantizerConfig:
        """Resolve the settings of one layer.

        Args:
            name: Qualified name of the layer.
            bits: What its place in the model makes of its bit-width, which
                overrides go before.
        """
        config = self.default
        if bits is not None:
            config = config.updated({'bits': bits}, f'{name}.')
        for pattern, settings in self.overrides.items():
            if matches(name, pattern):
                config = config.updated(settings, f'overrides[{pattern!r}].')
        return config


_OWN_KEYS = tuple(f.name for f in fields(ConversionConfig)
                  if f.name != 'default')
#: All keys of a conversion in a model's config.
OPTIONS = ('bits', *_OWN_KEYS, *QuantizerConfig.__dataclass_fields__)
