"""Training on the GPU: a tiny classifier, and a tiny detector."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch.nn import functional as F
from training import (TinyClassifier, TinyDataset, assert_equal_states, load,
                      make_config, train)

from lcq_mmdet import convert_
from lcq_mmdet.functional import KERNELS
from lcq_mmdet.quantization.calibration import initialize_, observe
from lcq_mmdet.quantization.layers import lcq_quantizers

TESTS = Path(__file__).parents[1]


def accuracy(runner, device):
    """Share of the training images whose class is found."""
    data = runner.train_dataloader.dataset
    with torch.no_grad():
        scores = runner.model.eval()(data.images.to(device)).cpu()
    return (scores.argmax(1) == data.labels).float().mean()


def assert_on(device, model):
    tensors = model.state_dict()
    assert {value.device.type for value in tensors.values()} == {device}
    assert all(value.isfinite().all() for value in tensors.values())


def test_kernel_trains_as_the_reference_does(triton, tmp_path, monkeypatch):
    options = {'model.batch_norm': False}
    ours = train(make_config(tmp_path / 'triton', **options))
    monkeypatch.delitem(KERNELS, triton)
    same = train(make_config(tmp_path / 'reference', **options))
    # Sums in another order; a value near a border may take the other level.
    assert_equal_states(ours.model.state_dict(), same.model.state_dict(),
                        rtol=1e-3, atol=1e-5)


def calibrated(device, images):
    torch.manual_seed(0)
    model = TinyClassifier()
    convert_(model, bits=4)
    model.to(device)
    with observe(model) as observations:
        model(images.to(device))
    initialize_(model, observations)
    return model


def test_calibration_gives_what_the_cpu_gives(device):
    images = TinyDataset().images
    ours, same = (dict(lcq_quantizers(calibrated(place, images)))
                  for place in (device, 'cpu'))
    assert len(ours) == 6
    for name, quantizer in ours.items():
        assert quantizer.clip.device.type == device
        assert quantizer.is_initialized
        assert quantizer.is_signed == same[name].is_signed
        levels, expected = (
            (q.range()[0] + q.clip * q.levels()).detach().cpu()
            for q in (quantizer, same[name]))
        error = (levels - expected).abs().max() / same[name].clip
        assert error < 0.02, (name, error)


def test_gradient_scaler_leaves_no_trace_in_the_step(device):
    """One step, with and without a scale of the loss."""
    data, states = TinyDataset(), []
    for scale in (None, 2.**10):
        model = calibrated(device, data.images)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler(
            device, init_scale=scale or 1., enabled=scale is not None)
        with torch.autocast(device, torch.float16):
            scores = model(data.images.to(device))
        assert scores.dtype == torch.float16
        loss = F.cross_entropy(scores.float(), data.labels.to(device))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scale is None or scaler.get_scale() == scale
        states.append(model.state_dict())
    start = calibrated(device, data.images).state_dict()
    moved = [key for key, value in start.items()
             if key.endswith('weight_quantizer.clip')
             and value != states[1][key]]
    assert len(moved) == 3
    assert_equal_states(*states, rtol=1e-2, atol=1e-3)


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Stands in for mmengine's, which refuses to run without a GPU."""

    def __init__(self, *args, loss_scale, **kwargs):
        super().__init__(*args, **kwargs)

    def optim_context(self, model):
        return torch.autocast('cpu', dtype=torch.bfloat16)


def mixed_precision(device):
    name = 'AmpOptimWrapper' if device == 'cuda' else 'CpuAmpOptimWrapper'
    return {'optim_wrapper.type': name, 'optim_wrapper.loss_scale': 'dynamic'}


def test_mixed_precision_learns_and_keeps_quantizers_in_float32(
        device, tmp_path):
    runner = train(make_config(
        tmp_path, **mixed_precision(device), **{'train_cfg.max_epochs': 15}))
    assert_on(device, runner.model)
    assert accuracy(runner, device) > 0.9
    for name, quantizer in lcq_quantizers(runner.model):
        for parameter in quantizer.parameters():
            assert parameter.dtype == torch.float32, name


def test_moving_average_resumes(device, tmp_path):
    ema = dict(type='EMAHook', momentum=0.1, update_buffers=True)
    train(make_config(tmp_path / 'whole', custom_hooks=[ema]))
    runner = train(make_config(
        tmp_path / 'resumed', resume=True, custom_hooks=[ema],
        load_from=str(tmp_path / 'whole/epoch_1.pth')))
    assert_on(device, runner.model)
    whole, resumed = (load(tmp_path / folder / 'epoch_2.pth')
                      for folder in ('whole', 'resumed'))
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal_states(whole[part], resumed[part], rtol=1e-4, atol=1e-6)


READ = '''
import sys
import torch
sys.path.insert(0, sys.argv[1])
from mmengine.runner import Runner
from training import make_config

assert not torch.cuda.is_available()
runner = Runner.from_cfg(make_config('read', load_from='epoch_2.pth'))
runner.load_or_resume()
with torch.no_grad():
    torch.save(runner.model.eval()(torch.load('images.pth')), 'scores.pth')
'''


def test_checkpoint_is_read_without_a_gpu(device, tmp_path):
    runner = train(make_config(tmp_path))
    images = runner.train_dataloader.dataset.images
    torch.save(images, tmp_path / 'images.pth')
    subprocess.run([sys.executable, '-c', READ, TESTS], cwd=tmp_path,
                   env=dict(os.environ, CUDA_VISIBLE_DEVICES=''), check=True)
    with torch.no_grad():
        expected = runner.model.eval()(images.to(device)).cpu()
    # The mean over 64 places hides a value that takes the other level.
    torch.testing.assert_close(
        torch.load(tmp_path / 'scores.pth'), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('amp', [False, True], ids=['float32', 'amp'])
def test_detector_trains(device, amp, lcq_config):
    lcq_config.train_cfg.max_epochs = 1
    # Two steps: bfloat16 takes its time on a CPU.
    lcq_config.train_dataloader.batch_size = 4
    lcq_config.train_dataloader.dataset.indices = 8
    lcq_config.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    lcq_config.model.modules = ['backbone', 'neck', 'bbox_head']
    if amp:
        lcq_config.merge_from_dict(mixed_precision(device))
    runner = Runner.from_cfg(lcq_config)
    before = {name: value.clone().cpu()
              for name, value in runner.model.named_parameters()}
    runner.train()
    assert_on(device, runner.model)
    for name, parameter in runner.model.named_parameters():
        # A bias before batch norm and a theta of 8 bits hardly move.
        if name.endswith(('_quantizer.clip', 'conv.weight')):
            assert not torch.equal(parameter.cpu(), before[name]), name
