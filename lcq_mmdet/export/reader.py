"""From a packed file to a checkpoint as mmengine knows it."""
import os.path as osp
from collections import OrderedDict
from dataclasses import asdict
from typing import Any, Dict, List, Mapping, Tuple

import torch
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lcq_mmdet.conversion.checkpoint import PACKED
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.weight import QuantizedWeight

from .bits import unpack_codes
from .packed import (CODEBOOK, SCALE, Manifest, PackedLayer, checksums,
                     read_metadata)
from .stacks import unstack


def load_packed(path: str) -> Dict[str, Any]:
    """Read a packed file and unpack it.

    The file is mapped, and its tensors are read when they are used; the
    weights of quantized layers are unpacked to float32.

    Args:
        path: Path of a file that ``lcq export`` wrote.

    Returns:
        A checkpoint: ``state_dict``, and ``meta`` with the config's text as
        ``cfg`` and what else the file has.

    Raises:
        LCQError: If there is no such file, or it is altered, cut off, of a
            newer version or no packed file; names file and layer.
    """
    try:
        with safe_open(path, framework='pt') as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise LCQError(f'{path}: is cut off or is no safetensors file: '
                       f'{error}') from None
    try:
        manifest, config, meta = read_metadata(metadata)
        tensors = unstack(tensors, list(manifest.layers), manifest.aliases)
        _check_modules(manifest, checksums(tensors))
        state = _unpack(manifest, tensors)
    except LCQError as error:
        raise LCQError(f'{path}: {error}') from None
    cfg = ''.join(f'{key} = {value!r}\n' for key, value in config.items())
    return dict(meta=dict(meta, cfg=cfg), state_dict=state)


@CheckpointLoader.register_scheme(
    prefixes=r'(?!.*://).*\.safetensors$', force=True)
def load_from_packed(filename: str, map_location: Any = None) -> Dict:
    """Load a packed file in the place of a checkpoint, for mmengine.

    A safetensors file of anything else is a state dict as it is.

    Args:
        filename: Path ending in ``.safetensors``.
        map_location: Device of the tensors; ``None`` or anything else that
            :func:`torch.load` takes leaves them on the CPU.
    """
    filename = osp.expanduser(filename)
    checkpoint = (
        dict(state_dict=_load_plain(filename), meta={})
        if _is_plain(filename) else load_packed(filename))
    if isinstance(map_location, (str, torch.device)):
        state = checkpoint['state_dict']
        for key, value in state.items():
            state[key] = value.to(map_location)
    return checkpoint


def _is_plain(path: str) -> bool:
    """Tell whether a file is of safetensors, and not a packed one."""
    try:
        with safe_open(path, framework='pt') as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return False
    # Others write format='pt', or nothing; a packed file that was altered
    # still has one of these.
    return metadata.get('format') in (None, 'pt') and not (
        {'manifest', 'checksum'} & metadata.keys())


def _load_plain(path: str) -> Dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise LCQError(f'{path}: cannot be read: {error}') from None


def _check_modules(manifest: Manifest, found: Mapping[str, str]) -> None:
    wrong: List[str] = [
        module for module in {**manifest.checksums, **found}
        if manifest.checksums.get(module) != found.get(module)
    ]
    if wrong:
        raise LCQError(f'is altered: {wrong[0] or "the model"} does not fit '
                       'its checksum')


def _unpack(manifest: Manifest,
            tensors: Dict[str, Tensor]) -> 'OrderedDict[str, Tensor]':
    """Turn the file's tensors into a state dict.

    What check_packed needs goes along as the metadata that torch passes to
    the hooks of a model.
    """
    state = OrderedDict(tensors)
    for key, value in state.items():
        if manifest.half and value.dtype == torch.float16:
            state[key] = value.float()
    for name, layer in manifest.layers.items():
        try:
            weight = _unpack_weight(name, layer, tensors)
        except (KeyError, ValueError) as error:
            raise LCQError(f'{name}: its weight cannot be unpacked: '
                           f'{error}') from None
        state[f'{name}.weight'] = weight
        del state[f'{name}{CODEBOOK}']
        state.pop(f'{name}{SCALE}', None)
    for key, original in manifest.aliases.items():
        if original not in state:
            raise LCQError(f'is broken: {key} shares the tensor of '
                           f'{original!r}, which is not there')
        state[key] = state[original]
    layers = {name: asdict(layer) for name, layer in manifest.layers.items()}
    state._metadata = {'': {PACKED: layers}}  # type: ignore[attr-defined]
    return state


def _unpack_weight(name: str, layer: PackedLayer,
                   tensors: Mapping[str, Tensor]) -> Tensor:
    stream = tensors[f'{name}.weight']
    codebook = tensors[f'{name}{CODEBOOK}']
    scale = tensors.get(f'{name}{SCALE}')
    _check_tensor('stream of codes', stream, torch.uint8, (layer.bytes, ))
    _check_tensor('codebook', codebook, torch.float32, (codebook.numel(), ))
    if scale is not None:
        _check_tensor('scale', scale, torch.float32, layer.shape[:1])
    codes = unpack_codes(stream.numpy(), layer.weight_bits, layer.count)
    weight = QuantizedWeight(
        codes.reshape(layer.shape), codebook.numpy(),
        None if scale is None else scale.numpy())
    return torch.from_numpy(weight.values())


def _check_tensor(what: str, tensor: Tensor, dtype: torch.dtype,
                  shape: Tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(f'its {what} is {tensor.dtype} of shape '
                         f'{tuple(tensor.shape)}')
