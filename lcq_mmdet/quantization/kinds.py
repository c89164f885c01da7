"""Which class quantizes, by the name in the settings."""
from typing import Dict, Type

from .config import QuantizerConfig
from .lsq import LSQQuantizer
from .quantizer import LCQQuantizer

_KINDS: Dict[str, Type[LCQQuantizer]] = {'lsq': LSQQuantizer}


def make_quantizer(config: QuantizerConfig, is_weight: bool) -> LCQQuantizer:
    """Make the quantizer that the settings ask for.

    Args:
        config: Settings of the layer.
        is_weight: Whether it quantizes the weight or the input.
    """
    return _KINDS.get(config.quantizer, LCQQuantizer)(config, is_weight)
