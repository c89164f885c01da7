"""Learnable companding quantization for mmdetection."""
from . import export, hooks, kernels
from .compat import allow_checkpoint_globals
from .config import QuantizerConfig
from .convert import ConversionSummary, convert_
from .errors import LCQError
from .layers import LCQConv2d
from .model import LCQModel, apply_lcq
from .quantizer import LCQQuantizer
from .version import __version__

allow_checkpoint_globals()

__all__ = [
    'ConversionSummary', 'LCQConv2d', 'LCQError', 'LCQModel', 'LCQQuantizer',
    'QuantizerConfig', '__version__', 'apply_lcq', 'convert_'
]
