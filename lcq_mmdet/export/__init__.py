"""Files that a trained model leaves in."""
from .reader import load_packed
from .sizes import PackedSizes, float_bytes, size_table
from .source import load_quantized, training_images
from .writer import export_packed

__all__ = [
    'PackedSizes', 'export_packed', 'float_bytes', 'load_packed',
    'load_quantized', 'size_table', 'training_images'
]
