import copy
import os

import pytest
import torch
from conftest import CONFIGS
from exporting import build, make_config, make_model, outputs
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lcq_mmdet import LCQError, convert_
from lcq_mmdet.export import export_packed, load_packed, writer
from lcq_mmdet.export.packed import (CODEBOOK, PackedLayer, checksums,
                                     read_metadata, write_metadata)
from lcq_mmdet.export.stacks import unstack
from lcq_mmdet.quantization.layers import lcq_layers
from lcq_mmdet.report.layers import layer_table

LAYER = 'backbone.layer1.0.conv1'
STACK = '*.act_quantizer.clip'


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Config, model and packed file of a RetinaNet at 4 bits."""
    path = str(tmp_path_factory.mktemp('packed') / 'model.safetensors')
    cfg = make_config()
    model = make_model(cfg)
    meta = dict(dataset_meta=dict(classes=('a', 'b'), palette=[(1, 2, 3)]))
    export_packed(model, path, cfg.to_dict(), meta)
    return cfg, model, path


@pytest.fixture
def rewrite(exported, tmp_path):
    """Change the tensors or the manifest of a file and sign it again."""

    def rewritten(change):
        with safe_open(exported[2], 'pt') as file:
            metadata = file.metadata()
        tensors = {k: v.clone() for k, v in load_file(exported[2]).items()}
        manifest, config, meta = read_metadata(metadata)
        change(tensors, manifest)
        whole = unstack(tensors, list(manifest.layers), manifest.aliases)
        fields = dict(vars(manifest), checksums=checksums(whole))
        path = str(tmp_path / 'changed.safetensors')
        save_file(tensors, path, write_metadata(
            type(manifest)(**fields), config, meta))
        return path

    return rewritten


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.equal(
            one.contiguous().view(-1).view(torch.uint8),
            other.contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('detector', ['RetinaNet', 'FasterRCNN'])
def test_reloaded_detector_computes_the_same_bits(detector, bits, tmp_path):
    path = str(tmp_path / 'model.safetensors')
    cfg = make_config(detector, bits=bits)
    model = make_model(cfg)
    export_packed(model, path, cfg.to_dict())
    reloaded = build(cfg)
    load_checkpoint(reloaded, path)
    expected = outputs(model)
    assert expected[-1].numel() and expected[0].any()
    assert_same_bits(outputs(reloaded), expected)


@pytest.mark.parametrize('options', [
    dict(weight_norm='channel', bits=3),
    dict(weight_norm='none', quantizer='uniform'),
    dict(signed_act='symmetric', weight_bits=2, act_bits=5, num_intervals=7),
    dict(modules=['backbone', 'neck', 'bbox_head']),
    dict(out_bits=8, bits=2),
    dict(out_bits=8, bits=8, weight_norm='channel', signed_act='symmetric'),
    dict(overrides={'neck': dict(bits=6)}, exclude=['backbone.layer2']),
], ids=lambda options: ','.join(options))
def test_every_setting_comes_back(options, tmp_path):
    path = str(tmp_path / 'model.safetensors')
    cfg = make_config(**options)
    model = build(cfg)
    for _, layer in lcq_layers(model):
        layer.act_quantizer.initialize_(torch.randn(1000), signed=True)
        layer.weight_quantizer.initialize_(layer.weight, signed=True)
    export_packed(model, path, cfg.to_dict())
    reloaded = build(cfg)
    load_checkpoint(reloaded, path)
    for (name, layer), (_, other) in zip(lcq_layers(model),
                                         lcq_layers(reloaded)):
        assert_same_bits([other.quantized_weight(), other.weight],
                         2 * [layer.quantized_weight()])
    assert_same_bits(outputs(reloaded), outputs(model))


@pytest.mark.parametrize('bits', range(2, 9))
def test_weights_take_exactly_their_bits(bits, tmp_path):
    model = nn.ModuleDict(dict(backbone=nn.Conv2d(3, 7, 3)))
    convert_(model, modules=['backbone'], first_layer_bits=None, bits=bits)
    layer = model['backbone']
    layer.act_quantizer.initialize_(torch.rand(100), signed=False)
    layer.weight_quantizer.initialize_(layer.weight, signed=True)
    path = str(tmp_path / 'model.safetensors')
    sizes = export_packed(model, path, {})
    codes = load_file(path)['backbone.weight']
    assert codes.dtype == torch.uint8
    assert codes.nbytes == sizes.codes == -(-3 * 7 * 9 * bits // 8)
    assert sizes.total == os.path.getsize(path)
    assert sizes.float_model == 4 * (3 * 7 * 9 + 7)


@pytest.mark.parametrize('bits, modules, most', [
    (4, ['backbone', 'neck'], 0.29),
    (4, ['backbone', 'neck', 'bbox_head'], 0.14),
    (2, ['backbone', 'neck', 'bbox_head'], 0.08),
], ids=['float_head', 'quantized_head', 'at 2 bits'])
def test_retinanet_r50_is_small(tmp_path, bits, modules, most):
    path = str(tmp_path / 'model.safetensors')
    cfg = Config.fromfile(CONFIGS / 'retinanet_lcq_4bit.py')
    cfg.model.update(bits=bits, modules=modules)
    model = build(cfg)
    for _, layer in lcq_layers(model):
        for quantizer in (layer.act_quantizer, layer.weight_quantizer):
            quantizer.initialized.fill_(True)
            quantizer._read_buffers()
    sizes = export_packed(model, path, cfg.to_dict())
    floats = {
        key: value
        for key, value in model.state_dict().items()
        if '_quantizer.' not in key
    }
    torch.save(floats, tmp_path / 'float.pth')
    packed = os.path.getsize(path)
    assert packed <= most * os.path.getsize(tmp_path / 'float.pth')
    assert sizes.overhead < 0.01
    eight = ('backbone.conv1', 'bbox_head.retina_cls', 'bbox_head.retina_reg')
    assert sizes.codes == sum(
        layer.weight.numel() * (8 if name in eight else bits) // 8
        for name, layer in lcq_layers(model))
    assert sizes.header + sizes.quantizers + sizes.rest + sizes.codes == packed


def test_file_has_config_meta_and_no_pickle(exported):
    cfg, _, path = exported
    checkpoint = load_packed(path)
    text = Config.fromstring(checkpoint['meta']['cfg'], '.py')
    assert text.to_dict() == cfg.to_dict()
    assert checkpoint['meta']['dataset_meta'] == dict(
        classes=('a', 'b'), palette=[(1, 2, 3)])
    with safe_open(path, 'pt') as file:
        assert file.metadata()['version'] == '3'
        assert all(isinstance(v, str) for v in file.metadata().values())


def test_model_is_not_changed(exported):
    _, model, _ = exported
    assert not any(layer.weight_quantizer.is_packed
                   for _, layer in lcq_layers(model))


def test_half_precision_is_smaller_and_close(exported, tmp_path):
    cfg, model, path = exported
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.bbox_head.retina_cls.bias[0] = 1e6
    half = str(tmp_path / 'half.safetensors')
    export_packed(model, half, cfg.to_dict(), half=True)
    tensors = load_file(half)
    assert tensors['bbox_head.retina_reg.weight'].dtype == torch.float16
    assert tensors['bbox_head.retina_cls.bias'].dtype == torch.float32
    assert tensors['*.act_quantizer.clip'].dtype == torch.float32
    reloaded = build(cfg)
    load_checkpoint(reloaded, half)
    assert_same_bits(
        [dict(lcq_layers(reloaded))[LAYER].weight],
        [dict(lcq_layers(model))[LAYER].quantized_weight()])
    own = reloaded.state_dict()
    for key, value in load_packed(half)['state_dict'].items():
        assert own[key].dtype == value.dtype
    weight = reloaded.bbox_head.retina_reg.weight
    torch.testing.assert_close(
        weight, model.bbox_head.retina_reg.weight, rtol=1e-3, atol=1e-6)
    assert os.path.getsize(half) < os.path.getsize(path)


def test_shared_layer_is_kept_once(tmp_path):
    conv = nn.Conv2d(3, 8, 3)
    model = nn.ModuleDict(dict(a=conv, b=conv, c=nn.Conv2d(8, 8, 1)))
    convert_(model, modules=['a'])
    model['a'].act_quantizer.initialize_(torch.rand(100), signed=False)
    model['a'].weight_quantizer.initialize_(conv.weight, signed=True)
    path = str(tmp_path / 'model.safetensors')
    export_packed(model, path, {})
    assert not any(key.startswith('b.') for key in load_file(path))
    expected = model['a'].quantized_weight().detach()
    model.load_state_dict(load_packed(path)['state_dict'])
    model.eval()
    assert_same_bits([model['b'].quantized_weight()], [expected])


def test_shared_weight_alone_is_refused(tmp_path):
    model = nn.ModuleDict(dict(a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 8, 3)))
    model['b'].weight = model['a'].weight
    convert_(model, modules=['a', 'b'])
    for layer in model.values():
        layer.act_quantizer.initialize_(torch.rand(100), signed=False)
        layer.weight_quantizer.initialize_(layer.weight, signed=True)
    with pytest.raises(LCQError, match='b: shares its weight with a.weight'):
        export_packed(model, str(tmp_path / 'model.safetensors'), {})


# The state of a loaded layer.


@pytest.fixture
def reloaded(exported):
    model = build(exported[0])
    load_checkpoint(model, exported[2])
    return model


def test_packed_state_survives_saving_copying_and_loading(
        exported, reloaded, tmp_path):
    expected = outputs(reloaded)
    assert_same_bits(outputs(copy.deepcopy(reloaded)), expected)
    torch.save(reloaded.state_dict(), tmp_path / 'again.pth')
    again = build(exported[0])
    again.load_state_dict(torch.load(tmp_path / 'again.pth'))
    assert_same_bits(outputs(again), expected)


def test_packed_state_is_shown(exported, reloaded):
    assert f'{LAYER} ' in layer_table(reloaded)
    assert '4/4 packed' in layer_table(reloaded)
    assert 'packed' not in layer_table(exported[1])
    assert 'packed=True' in repr(dict(lcq_layers(reloaded))[LAYER])


def test_packed_weight_is_not_trained(reloaded):
    reloaded.train()
    with pytest.raises(RuntimeError, match='packed file, which has no float'):
        reloaded.extract_feat(torch.randn(2, 3, 64, 64))
    with torch.no_grad():
        reloaded.extract_feat(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize('drop', [(), ('_quantizer.packed', ),
                                  ('_quantizer.', )])
def test_float_weight_takes_the_place_of_a_packed_one(exported, reloaded,
                                                      drop):
    model = exported[1]
    state = {
        key: value
        for key, value in model.state_dict().items()
        if not any(part in key for part in drop)
    }
    missing, _ = reloaded.load_state_dict(state, strict=False)
    assert not any(key.endswith('packed') for key in missing)
    assert_same_bits(outputs(reloaded), outputs(model))


def test_state_without_the_weight_leaves_it_packed(reloaded):
    expected = outputs(reloaded)
    state = {
        key: value
        for key, value in reloaded.state_dict().items()
        if key.startswith('bbox_head')
    }
    reloaded.load_state_dict(state, strict=False)
    assert_same_bits(outputs(reloaded), expected)


# What is refused.


def test_uncalibrated_layer_is_named(exported, tmp_path):
    model = copy.deepcopy(exported[1])
    quantizer = dict(lcq_layers(model))[LAYER].act_quantizer
    quantizer.initialized.fill_(False)
    quantizer._read_buffers()
    with pytest.raises(LCQError, match=f'{LAYER}: was never calibrated'):
        export_packed(model, str(tmp_path / 'model.safetensors'), {})


@pytest.mark.parametrize('quantize, message', [
    (lambda x, **options: x, 'different values$'),
    (lambda x, **options: (x * 10 / x.abs().max()).round(),
     'values, too many for 4 bits$')
], ids=['any', '21'])
def test_weight_of_more_values_than_its_bits_is_refused(
        exported, tmp_path, monkeypatch, quantize, message):
    """As a broken quantizer would give it."""
    model = copy.deepcopy(exported[1])
    quantizer = dict(lcq_layers(model))[LAYER].weight_quantizer
    monkeypatch.setattr(quantizer, '_quantize', quantize)
    with pytest.raises(LCQError,
                       match=f'^{LAYER}: its weight has [0-9]+ {message}'):
        export_packed(model, str(tmp_path / 'model.safetensors'), {})


@pytest.mark.parametrize('key', ['weight', 'act_quantizer.clip'])
def test_value_that_is_not_finite_is_named(exported, tmp_path, key):
    model = copy.deepcopy(exported[1])
    layer = dict(lcq_layers(model))[LAYER]
    layer.state_dict()[key].fill_(float('nan'))
    with pytest.raises(LCQError, match=f'{LAYER}.{key}: is not finite'):
        export_packed(model, str(tmp_path / 'model.safetensors'), {})


def test_float_model_is_refused(tmp_path):
    with pytest.raises(LCQError, match='the model is float'):
        export_packed(nn.Conv2d(3, 8, 3), str(tmp_path / 'x.safetensors'), {})


def test_packed_model_is_not_packed_again(reloaded, tmp_path):
    with pytest.raises(LCQError, match='backbone.conv1: is packed already'):
        export_packed(reloaded, str(tmp_path / 'model.safetensors'), {})


def test_config_must_be_plain(exported, tmp_path):
    with pytest.raises(LCQError, match='hook: cannot be written'):
        export_packed(exported[1], str(tmp_path / 'model.safetensors'),
                      dict(hook=print))
    assert not list(tmp_path.iterdir())


def test_output_survives_a_broken_write(exported, tmp_path, monkeypatch):
    cfg, model, _ = exported
    path = tmp_path / 'model.safetensors'
    path.write_text('old')

    def pack_wrongly(codes, bits, pack=writer.pack_codes):
        stream = pack(codes, bits)
        stream[-1] ^= 1
        return stream

    monkeypatch.setattr(writer, 'pack_codes', pack_wrongly)
    with pytest.raises(LCQError, match='backbone.conv1.weight was not'):
        export_packed(model, str(path), cfg.to_dict())
    assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1

    monkeypatch.undo()
    monkeypatch.setattr(os, 'replace', lambda *_: os.stat('/nowhere'))
    with pytest.raises(LCQError, match='cannot be written'):
        export_packed(model, str(path), cfg.to_dict())
    assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('options, message', [
    (dict(weight_bits=3), f'{LAYER} has weight_bits=4 in the file and 3 in'),
    (dict(act_bits=8), f'{LAYER} has act_bits=4 in the file and 8 in the'),
    (dict(out_bits=8), 'backbone.conv1 has out_bits=None in the file and 8'),
    (dict(signed_act='symmetric'), "conv1 has signed_act='offset' in the"),
    (dict(exclude=['backbone.layer1.0']), f'leaves {LAYER} in float'),
    (dict(modules=['backbone', 'neck', 'bbox_head']),
     'quantizes bbox_head.cls_convs.0.conv; in the file it is in float'),
    (dict(num_intervals=8), 'backbone.conv1.*theta has the shape'),
])
def test_config_that_does_not_fit_is_refused(exported, options, message):
    model = build(make_config(**options))
    with pytest.raises(LCQError, match=message):
        load_checkpoint(model, exported[2])


def test_other_architecture_is_refused(exported):
    cfg = copy.deepcopy(exported[0])
    cfg.model.bbox_head.num_classes = 3
    with pytest.raises(LCQError, match='its bbox_head.retina_cls.weight has'):
        load_checkpoint(build(cfg), exported[2])
    cfg.model.bbox_head.stacked_convs = 2
    with pytest.raises(LCQError, match='no bbox_head.cls_convs.1'):
        load_checkpoint(build(cfg), exported[2])


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_altered_layer_is_named(exported, tmp_path):
    path = tmp_path / 'model.safetensors'
    whole = open(exported[2], 'rb').read()
    codes = load_file(exported[2])[f'{LAYER}.weight'].numpy().tobytes()
    path.write_bytes(whole)
    flip(path, whole.index(codes))
    with pytest.raises(LCQError, match=f'altered: {LAYER} does not fit its'):
        load_packed(str(path))
    path.write_bytes(whole)
    flip(path, whole.index(b"'RetinaNet'") + 3)
    with pytest.raises(LCQError, match='altered: its header'):
        load_packed(str(path))


@pytest.mark.parametrize('size', [0, 1, 7, 8, 100, 20000, -1])
def test_file_that_is_cut_off_is_refused(exported, tmp_path, size):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(open(exported[2], 'rb').read()[:size])
    with pytest.raises(LCQError, match='model.safetensors: is cut off or is'):
        load_packed(str(path))


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(LCQError, match='No such file'):
        load_packed(str(tmp_path / 'none.safetensors'))
    path = str(tmp_path / 'foreign.safetensors')
    save_file(dict(x=torch.zeros(3)), path)
    with pytest.raises(LCQError, match='is not a packed checkpoint'):
        load_packed(path)


@pytest.mark.parametrize('version, advice', [
    ('4', 'install a newer one'), ('2', 'export the checkpoint again')])
def test_other_version_is_told(exported, tmp_path, version, advice):
    path = str(tmp_path / 'model.safetensors')
    with safe_open(exported[2], 'pt') as file:
        metadata = dict(file.metadata(), version=version)
    save_file(load_file(exported[2]), path, metadata)
    with pytest.raises(LCQError, match=f'format version {version}, and this '
                       f'.* reads 3: {advice}'):
        load_packed(path)


def test_stack_of_another_length_is_refused(exported, tmp_path):
    with safe_open(exported[2], 'pt') as file:
        metadata = file.metadata()
    tensors = load_file(exported[2])
    path = str(tmp_path / 'model.safetensors')
    for clips in (tensors[STACK][1:].clone(), torch.tensor(1.)):
        save_file(dict(tensors, **{STACK: clips}), path, metadata)
        with pytest.raises(LCQError, match=r'altered: \*.act_quantizer.clip'):
            load_packed(path)


def test_compander_of_another_size_stays_with_its_layer(tmp_path):
    cfg = make_config(overrides={'neck': dict(num_intervals=8)})
    model = make_model(cfg)
    path = str(tmp_path / 'model.safetensors')
    export_packed(model, path, cfg.to_dict())
    tensors = load_file(path)
    name = 'neck.fpn_convs.0.conv'
    assert tensors[f'{name}.act_quantizer.theta'].shape == (8, )
    assert f'{name}.act_quantizer.clip' not in tensors
    layers = len(dict(lcq_layers(model)))
    assert len(tensors[STACK]) == layers
    assert len(tensors['*.act_quantizer.theta']) == layers - sum(
        key.endswith('act_quantizer.theta') for key in tensors
        if not key.startswith('*'))


def drop_codebook(tensors, manifest):
    del tensors[LAYER + CODEBOOK]


def shorten_codebook(tensors, manifest):
    tensors[LAYER + CODEBOOK] = tensors[LAYER + CODEBOOK][:4].clone()


def shorten_codes(tensors, manifest):
    tensors[f'{LAYER}.weight'] = tensors[f'{LAYER}.weight'][1:].clone()


def change_dtype(tensors, manifest):
    tensors[LAYER + CODEBOOK] = tensors[LAYER + CODEBOOK].double()


def enlarge_shape(tensors, manifest):
    manifest.layers[LAYER] = PackedLayer((2**20, 2**20, 3, 3), 4, 4, 'offset',
                                         None, 2**39 * 9)


@pytest.mark.parametrize('change, message', [
    (drop_codebook, 'codebook'),
    (shorten_codebook, r'code \d+ is outside the codebook of 4 values'),
    (shorten_codes, 'its stream of codes is torch.uint8 of shape'),
    (change_dtype, 'its codebook is torch.float64'),
    (enlarge_shape, 'its stream of codes is torch.uint8 of shape'),
])
def test_file_that_was_written_wrongly_is_refused(rewrite, change, message):
    with pytest.raises(LCQError,
                       match=f'{LAYER}: its weight cannot be .*{message}'):
        load_packed(rewrite(change))
