import os

import pytest
import torch

from lcq_mmdet.report.memory import peak_memory

MB = 2**20


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


def touched(megabytes):
    return torch.ones(megabytes * MB // 4)


@pytest.mark.skipif(
    not os.access('/proc/self/clear_refs', os.W_OK), reason='needs Linux')
def test_peak_is_what_comes_on_top_even_if_freed():
    before = touched(256)
    del before
    held = touched(64)
    with peak_memory() as peak:
        part = touched(128)
        del part
        part = touched(32)
    assert 120 < peak[0] / MB < 180
    with peak_memory() as peak:
        pass
    assert peak[0] / MB < 20
    assert held.all() and part.all()


def test_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(os, 'access', lambda *_: False)
    with peak_memory() as peak:
        pass
    assert peak == [None]
