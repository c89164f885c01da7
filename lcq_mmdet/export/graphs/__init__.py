"""Networks as ONNX graphs; needs the packages of ``lcq_mmdet[onnx]``."""
from lcq_mmdet.errors import LCQError

try:
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
except ImportError as error:
    raise LCQError(f'{error.name} is not installed, which ONNX files need: '
                   "pip install 'lcq_mmdet[onnx]'") from None

from .detector import GraphDetector
from .writer import export_onnx

__all__ = ['GraphDetector', 'export_onnx']
