"""Detectors that are one graph, from the image to the boxes."""
from .detector import EndToEndDetector, leave_padding_to_graph
from .writer import export_end2end

__all__ = ['EndToEndDetector', 'export_end2end', 'leave_padding_to_graph']
