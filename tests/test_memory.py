import os

import pytest
import torch

from lcq_mmdet.benchmark.memory import peak_allocation, peak_memory

MB = 2**20


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


def touched(megabytes):
    return torch.ones(megabytes * MB // 4)


needs_linux = pytest.mark.skipif(
    not os.access('/proc/self/clear_refs', os.W_OK), reason='needs Linux')


@needs_linux
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


@needs_linux
def test_memory_that_was_freed_before_counts_when_taken_again():

    def small_parts():
        return [torch.ones(2**14) for _ in range(2000)]

    before = small_parts()
    end_of_heap = torch.ones(2**14)
    del before
    with peak_memory() as peak:
        parts = small_parts()
    assert 120 < peak[0] / MB < 180
    assert len(parts) == 2000 and end_of_heap.all()


def test_allocations_of_a_call():
    held = []

    def call():
        parts = [touched(1) for _ in range(16)]
        del parts[::2]
        parts += [touched(2) for _ in range(8)]
        held.append(parts.pop())

    for _ in range(3):
        assert 0 <= peak_allocation(call) - (16 - 8 + 8 * 2) * MB < 4096
        held.clear()
    assert 0 <= peak_allocation(lambda: None) < 4096


def test_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(os, 'access', lambda *_: False)
    with peak_memory() as peak:
        pass
    assert peak == [None]
