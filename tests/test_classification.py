"""The example that is no detector: trained in float, then at 2 bits."""
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from lcq_mmdet.quantization.layers import lcq_layers

EXAMPLE = Path(__file__).parents[1] / 'examples' / 'classification'


def train(name, folder, **changes):
    cfg = Config.fromfile(EXAMPLE / f'{name}.py')
    cfg.work_dir, cfg.log_level = str(folder / name), 'WARNING'
    cfg.visualizer = dict(type='Visualizer', name=cfg.work_dir)
    cfg.merge_from_dict(changes)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner, runner.message_hub.get_scalar('val/accuracy').current()


def test_classifier_is_fine_tuned_at_two_bits(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    _, accuracy = train('resnet18_float', tmp_path)
    assert accuracy > 0.9
    checkpoint = str(tmp_path / 'resnet18_float' / 'epoch_6.pth')
    runner, low_bit = train('resnet18_lcq_2bit', tmp_path,
                            load_from=checkpoint)
    assert low_bit > 0.8
    bits = {
        name: layer.weight_quantizer.bits
        for name, layer in lcq_layers(runner.model)
    }
    assert {name for name, b in bits.items() if b == 8} == {'backbone.conv1'}
    assert len(bits) == 11 and bits['head.0'] == 2
