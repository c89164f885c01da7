"""mmdet's own API on the GPU, from a checkpoint and from a packed file."""
import numpy as np
import pytest
import torch
from exporting import make_config, make_model
from mmdet.apis import inference_detector, init_detector
from mmengine.registry import DATASETS

from lcq_mmdet.export import export_packed
from lcq_mmdet.quantization.layers import lcq_layers


@pytest.fixture(scope='module')
def files(toy_coco, tmp_path_factory):
    """Config, checkpoint and packed file of one calibrated detector."""
    folder = tmp_path_factory.mktemp('files')
    cfg = make_config(root=toy_coco)
    cfg.dump(folder / 'config.py')
    model = make_model(cfg)
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset))
    meta = dict(dataset_meta=dataset.metainfo, cfg=cfg.pretty_text, epoch=1)
    torch.save(dict(state_dict=model.state_dict(), meta=meta),
               folder / 'epoch_1.pth')
    export_packed(model, str(folder / 'model.safetensors'), cfg.to_dict(),
                  meta=meta)
    return folder


def open_detector(files, name, device):
    return init_detector(str(files / 'config.py'), str(files / name),
                         device=device, palette='random')


@torch.no_grad()
def features(model, device):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 64, 96, generator=generator)
    return [level.cpu() for level in model.extract_feat(x.to(device))]


@pytest.mark.parametrize('name', ['epoch_1.pth', 'model.safetensors'])
def test_features_are_those_of_the_cpu(device, files, name):
    ours, same = (features(open_detector(files, name, place), place)
                  for place in (device, 'cpu'))
    for level, expected in zip(ours, same):
        # A value near a border may take the other level.
        assert (level - expected).norm() < 0.05 * expected.norm()


def test_packed_file_detects_what_the_checkpoint_does(device, files):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    models = [open_detector(files, name, device)
              for name in ('epoch_1.pth', 'model.safetensors')]
    one, other = (inference_detector(model, image).pred_instances
                  for model in models)
    assert len(one.scores) and one.scores.device.type == device
    for key in ('bboxes', 'scores', 'labels'):
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_half_precision_changes_no_quantized_weight(device, files, dtype):
    model = open_detector(files, 'epoch_1.pth', device)
    expected = features(model, device)
    layers = dict(lcq_layers(model))
    weights = {name: layer.quantized_weight() for name, layer in
               layers.items()}
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    found = model.to(dtype).extract_feat(x.to(device, dtype))
    for name, weight in weights.items():
        assert torch.equal(layers[name].quantized_weight(), weight), name
    for level, same in zip(found, expected):
        assert level.dtype == dtype
        # Where a network is not trained, values take other levels easily.
        assert (level.cpu().float() - same).norm() < 0.5 * same.norm()
