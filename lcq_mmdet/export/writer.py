"""From a trained quantized model to a packed file."""
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterable, List, Mapping, Tuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lcq_mmdet.conversion.checkpoint import SETTINGS
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.layers import QuantizedLayer, lcq_layers
from lcq_mmdet.quantization.weight import QuantizedWeight
from lcq_mmdet.report.files import replacing
from lcq_mmdet.version import __version__

from .bits import pack_codes
from .packed import (CODEBOOK, SCALE, Manifest, PackedLayer, checksums,
                     raw_bytes, write_metadata)
from .reader import load_packed
from .sizes import PackedSizes, count_sizes
from .stacks import stack

State = Dict[str, Tensor]
Progress = Callable[[List[str]], Iterable[str]]


@torch.no_grad()
def export_packed(model: nn.Module,
                  path: str,
                  config: Mapping[str, Any],
                  meta: Mapping[str, Any] = {},
                  half: bool = False,
                  progress: Progress = iter) -> PackedSizes:
    """Write a packed file that gives the same model again, bit by bit.

    The file is written under another name, read again and compared; only
    then does it replace what is at ``path``.

    Args:
        model: A converted model with trained or calibrated quantizers, not
            wrapped; it is not changed.
        path: Where the file goes; ends in ``.safetensors``.
        config: The full config, as plain data.
        meta: What else a checkpoint's ``meta`` has: plain data.
        half: Whether to keep the rest in half precision: smaller, and not
            the same bit by bit any more. Quantizers stay as they are.
        progress: Wraps the names of the layers to pack, for example
            :func:`mmengine.track_iter_progress`.

    Raises:
        LCQError: If a layer was never calibrated, is packed already or is
            not finite, if the config is not plain data, or if the file
            cannot be written; what is at ``path`` is as it was.
    """
    layers = check_exportable(model)
    # What quantizers were fitted for is in the manifest.
    state, aliases = _distinct({
        key: value
        for key, value in model.state_dict().items()
        if not key.endswith(SETTINGS)
    })
    expected, tensors = dict(state), dict(state)
    for name in layers:
        if f'{name}.weight' in aliases:
            raise LCQError(f'{name}: shares its weight with '
                           f'{aliases[f"{name}.weight"]}; only a whole layer '
                           'can be shared')
    if half:
        weights = {f'{name}.weight' for name in layers}
        for key in state:
            if '_quantizer.' not in key and key not in weights:
                tensors[key], expected[key] = _halve(state[key])
    manifest_layers = {}
    for name in progress(list(layers)):
        manifest_layers[name] = _pack(name, layers[name], tensors)
        expected[f'{name}.weight'] = layers[name].quantized_weight()
        for packed in (expected, tensors):
            packed[f'{name}.weight_quantizer.packed'] = torch.tensor(True)
    tensors = {key: value.cpu().clone() for key, value in tensors.items()}
    manifest = Manifest(manifest_layers, checksums(tensors), aliases, half,
                        __version__)
    metadata = write_metadata(manifest, config, meta)
    for key, original in aliases.items():
        expected[key] = expected[original]

    tensors = stack(tensors, list(layers), _common_keys(layers.values()))
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(error) from None
        _verify(temporary, expected)
        return count_sizes(temporary, model, tensors, manifest)


def check_exportable(model: nn.Module) -> Dict[str, QuantizedLayer]:
    """Return the quantized layers, by name, of a model that can be packed.

    Raises:
        LCQError: If it cannot; names the layer.
    """
    layers = dict(lcq_layers(model))
    if not layers:
        raise LCQError('the model is float: it has no quantized layer')
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise LCQError(f'{name}: is {value.dtype}; only float32 can be '
                           'exported: call model.float(), or take the '
                           'checkpoint that it is from')
    for name, layer in layers.items():
        weight = layer.weight_quantizer
        if not (layer.act_quantizer.is_initialized and weight.is_initialized):
            raise LCQError(f'{name}: was never calibrated; fine-tune with '
                           'lcq train and export its checkpoint')
        if weight.is_packed:
            raise LCQError(f'{name}: is packed already; give the checkpoint '
                           'that the file was exported from')
        for key, value in layer.state_dict().items():
            if not value.isfinite().all():
                raise LCQError(f'{name}.{key}: is not finite')
    return layers


def encode_weight(name: str, layer: QuantizedLayer) -> QuantizedWeight:
    """Encode the weight of the layer of that name.

    Raises:
        LCQError: If it has more values than its bits can tell apart.
    """
    quantizer = layer.weight_quantizer
    try:
        weight = QuantizedWeight.of(quantizer, layer.weight)
    except ValueError as error:
        raise LCQError(f'{name}: {error}') from None
    if len(weight.codebook) > 2**quantizer.bits:
        raise LCQError(f'{name}: its weight has {len(weight.codebook)} '
                       f'values, too many for {quantizer.bits} bits')
    return weight


def _distinct(state: State) -> Tuple[State, Dict[str, str]]:
    """Part a state dict into its tensors and the keys that repeat one."""
    first: Dict[Tuple, str] = {}
    aliases = {}
    for key, value in state.items():
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and first.setdefault(place, key) != key:
            aliases[key] = first[place]
    return OrderedDict((key, value) for key, value in state.items()
                       if key not in aliases), aliases


def _common_keys(layers: Iterable[QuantizedLayer]) -> List[str]:
    """List the keys of quantizers that all layers have, after a dot."""
    own = [{
        f'.{key}': None
        for key in layer.state_dict()
        if key.startswith(('act_quantizer.', 'weight_quantizer.'))
        and not key.endswith(SETTINGS)
    } for layer in layers]
    return [key for key in own[0] if all(key in keys for keys in own)]


def _halve(value: Tensor) -> Tuple[Tensor, Tensor]:
    """Return what goes into the file in half precision, and comes back."""
    half = value.half()
    fits = value.dtype == torch.float32 and bool(
        (half.isfinite() == value.isfinite()).all())
    return (half, half.float()) if fits else (value, value)


def _pack(name: str, layer: QuantizedLayer, tensors: State) -> PackedLayer:
    """Put codes and codebook in the place of a layer's float weight."""
    bits, weight = layer.weight_quantizer.bits, encode_weight(name, layer)
    stream = torch.from_numpy(pack_codes(weight.codes.reshape(-1), bits))
    tensors[f'{name}.weight'] = stream
    tensors[f'{name}{CODEBOOK}'] = torch.from_numpy(weight.codebook)
    if weight.scale is not None:
        tensors[f'{name}{SCALE}'] = torch.from_numpy(weight.scale)
    config = layer.weight_quantizer.config
    return PackedLayer(
        tuple(layer.weight.shape), config.weight_bits, config.act_bits,
        config.signed_act, config.out_bits, len(stream))


def _verify(path: str, expected: State) -> None:
    """Read a file again and compare it with what it should hold."""
    found = load_packed(path)['state_dict']
    for key in {**expected, **found}:
        if key not in expected or key not in found:
            raise LCQError(f'{path}: {key} was not written as it is')
        one, other = found[key], expected[key].cpu()
        if (one.dtype, one.shape) != (other.dtype, other.shape) or not (
                torch.equal(raw_bytes(one), raw_bytes(other))):
            raise LCQError(f'{path}: {key} was not written as it is')
