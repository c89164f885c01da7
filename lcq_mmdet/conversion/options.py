"""The arguments of a conversion, checked before there is a model."""
from typing import Any, Mapping

from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import check_bits
from lcq_mmdet.quantization.config import QuantizerConfig

from .patterns import check_pattern_types


def check_options(options: Mapping[str, Any]) -> QuantizerConfig:
    """Check arguments of :func:`~lcq_mmdet.convert_` without a model.

    Returns:
        The settings of layers that have none of their own.

    Raises:
        LCQError: If an option is unknown or of a wrong type or out of range.
    """
    options = dict(options)
    for key in ('modules', 'exclude'):
        value = options.pop(key, None)
        if value is not None:
            check_pattern_types(key, value)
    for key in ('first_layer_bits', 'last_layer_bits'):
        value = options.pop(key, None)
        if value is not None:
            check_bits(value, key)
    overrides = options.pop('overrides', None)
    config = QuantizerConfig().updated(options)
    if overrides is None:
        return config
    if not isinstance(overrides, Mapping):
        raise LCQError(f'overrides={overrides!r}: must map patterns to '
                       'settings')
    check_pattern_types('overrides', list(overrides))
    for pattern, settings in overrides.items():
        if not isinstance(settings, Mapping):
            raise LCQError(f'overrides[{pattern!r}]={settings!r}: must be a '
                           'dictionary of settings')
        config.updated(settings, f'overrides[{pattern!r}].')
    return config
