"""Learnable companding quantization for mmdetection."""
from . import export, hooks, kernels
from .compat import (allow_checkpoint_globals, evaluate_without_info,
                     name_configs)
from .conversion.config import ConversionConfig
from .conversion.convert import ConversionSummary, convert_
from .conversion.model import LCQModel, apply_lcq, float_config
from .errors import LCQError
from .hooks import (LCQDampeningHook, LCQDistillHook, LCQHook, LCQMonitorHook,
                    LCQPreciseBNHook)
from .quantization.calibration import calibrate_
from .quantization.config import QuantizerConfig
from .quantization.layers import LCQConv2d, LCQLinear
from .quantization.lsq import LSQQuantizer
from .quantization.quantizer import LCQQuantizer
from .version import __version__

allow_checkpoint_globals()
evaluate_without_info()
name_configs()

__all__ = [
    'ConversionConfig', 'ConversionSummary', 'LCQConv2d', 'LCQDampeningHook',
    'LCQDistillHook', 'LCQError', 'LCQHook', 'LCQLinear', 'LCQModel',
    'LCQMonitorHook', 'LCQPreciseBNHook', 'LCQQuantizer', 'LSQQuantizer',
    'QuantizerConfig', '__version__', 'apply_lcq', 'calibrate_', 'convert_',
    'float_config'
]
