"""A generated detection data set in COCO's format."""
from .generate import generate_toy_coco
from .toy_coco import ToyCocoDataset

__all__ = ['ToyCocoDataset', 'generate_toy_coco']
