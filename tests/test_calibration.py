"""Post-training quantization of any module in two lines."""
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from lcq_mmdet import LCQError, apply_lcq, calibrate_, convert_
from lcq_mmdet.quantization.layers import lcq_quantizers


class TwoInputs(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x, scale):
        return self.head((scale * self.conv(x)).relu())


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('batch', [
    (X, 2.), [X, 2.], dict(x=X, scale=2.)], ids=['tuple', 'list', 'dict'])
def test_two_lines_quantize_a_module(batch):
    model = TwoInputs().train()
    expected = model(X, 2.)
    convert_(model, bits=8, modules=['*'])
    fitted = calibrate_(model, [batch])
    assert fitted == [name for name, _ in lcq_quantizers(model)]
    assert model.training
    error = (model(X, 2.) - expected).square().mean() / expected.var()
    assert error < 1e-3
    assert calibrate_(model, [batch]) == []


def test_detector_takes_batches_of_its_data_loader(tiny_config):
    init_default_scope('mmdet')
    cfg = apply_lcq(tiny_config, bits=4)
    model = MODELS.build(cfg.model)
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8)]
    fitted = calibrate_(model, [dict(inputs=images, data_samples=None)])
    assert len(fitted) == 2 * len(model.lcq_summary.quantized)


def test_data_that_reaches_no_layer_is_refused():
    model = TwoInputs()
    convert_(model, bits=4, modules=['*'])
    with pytest.raises(LCQError, match='conv, head: forward did not reach'):
        calibrate_(model, [])
