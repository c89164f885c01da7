import pytest
import torch
from hypothesis import settings

from lcq_mmdet.datasets import generate_toy_coco

settings.register_profile('lcq', deadline=None, max_examples=50,
                          derandomize=True)
settings.load_profile('lcq')


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def toy_coco(tmp_path_factory):
    """A generated data set of 32 training and 6 validation images."""
    root = tmp_path_factory.mktemp('data') / 'toy_coco'
    generate_toy_coco(root, num_images=32, size=64, seed=0)
    return root
