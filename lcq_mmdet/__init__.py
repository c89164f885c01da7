"""Learnable companding quantization for mmdetection."""
from . import export, hooks, kernels
from .compat import allow_checkpoint_globals, evaluate_without_info
from .conversion.convert import ConversionSummary, convert_
from .conversion.model import LCQModel, apply_lcq
from .errors import LCQError
from .quantization.config import QuantizerConfig
from .quantization.layers import LCQConv2d
from .quantization.quantizer import LCQQuantizer
from .version import __version__

allow_checkpoint_globals()
evaluate_without_info()

__all__ = [
    'ConversionSummary', 'LCQConv2d', 'LCQError', 'LCQModel', 'LCQQuantizer',
    'QuantizerConfig', '__version__', 'apply_lcq', 'convert_'
]
