"""Every example in a docstring gives what it says."""
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import lcq_mmdet

ROOT = Path(lcq_mmdet.__file__).parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(ROOT)], 'lcq_mmdet.')
    if '>>> ' in Path(
        importlib.util.find_spec(module.name).origin).read_text())


@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed
