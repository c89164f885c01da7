"""The GPU for every test, and the CPU to show that the test itself is right.

``pytest -m gpu`` runs what needs a GPU, here and elsewhere. Where there is
none, those tests are skipped, and their bodies run on the CPU.
"""
import pytest
import torch

from lcq_mmdet.functional import KERNELS

HAS_GPU = torch.cuda.is_available()


@pytest.fixture(params=[
    pytest.param(
        'cuda',
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not HAS_GPU, reason='needs a GPU')
        ]),
    pytest.param(
        'cpu',
        marks=pytest.mark.skipif(
            HAS_GPU, reason='there is a GPU, which a runner takes')),
])
def device(request, monkeypatch):
    """Where the test runs; float32 is float32 there, and repeatable."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    return request.param


@pytest.fixture
def triton(device, monkeypatch):
    """The device with Triton's kernel; on the CPU it is interpreted."""
    pytest.importorskip('triton')
    from lcq_mmdet.kernels.cuda import lcq_quantize_cuda
    if device == 'cpu':
        monkeypatch.setitem(KERNELS, 'cpu', lcq_quantize_cuda)
    assert KERNELS[device] is lcq_quantize_cuda
    return device
