"""What a graph's file says of itself, and whether it is whole."""
from typing import Any, Dict, Mapping, Optional

import onnx
from google.protobuf.message import DecodeError

from lcq_mmdet.errors import LCQError

from ..files import check_version, checksum, checksum_of_text, from_literal

FORMAT = 'lcq_mmdet.onnx'
VERSION = 1
# What may differ between the config of a file and the one that it runs with.
_FREE = ('train_cfg', 'test_cfg', 'init_cfg', 'pretrained')


def load_graph(path: str, config: Mapping[str, Any]) -> onnx.ModelProto:
    """Read a graph that ``tools/export.py`` wrote.

    Args:
        path: Path of the file.
        config: The model's part of the config of the quantized detector.

    Raises:
        LCQError: If the file cannot be read, is altered, of another version
            or of another config; names the file.
    """
    try:
        model = onnx.load(path)
        own = _read_metadata(model)
    except (OSError, DecodeError) as error:
        raise LCQError(f'{path}: is no ONNX file that can be read: '
                       f'{error}') from None
    except LCQError as error:
        raise LCQError(f'{path}: {error}') from None
    difference = _difference(own['model'], config, 'model')
    if difference:
        raise LCQError(f'{path}: is of another config: {difference}')
    return model


def write_metadata(model: onnx.ModelProto, config: str, meta: str) -> None:
    """Write what a reader checks into a graph's metadata."""
    metadata = dict(
        format=FORMAT,
        version=str(VERSION),
        config=config,
        meta=meta,
        graph=_graph_checksum(model))
    metadata['checksum'] = checksum_of_text(metadata)
    onnx.helper.set_model_props(model, metadata)


def _graph_checksum(model: onnx.ModelProto) -> str:
    return checksum(model.graph.SerializeToString(deterministic=True))


def _read_metadata(model: onnx.ModelProto) -> Dict[str, Any]:
    """Return the config of a file after checking the rest."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get('format') != FORMAT:
        raise LCQError('is not a graph of tools/export.py')
    check_version(metadata, VERSION)
    if metadata.pop('checksum', None) != checksum_of_text(metadata):
        raise LCQError('is altered: its metadata do not fit their checksum')
    if metadata['graph'] != _graph_checksum(model):
        raise LCQError('is altered: its graph does not fit its checksum')
    return from_literal(metadata['config'])


def _difference(own: Any, given: Any, key: str) -> Optional[str]:
    """Describe the first difference of two configs, if there is any."""
    if isinstance(own, Mapping) and isinstance(given, Mapping):
        for name in {**own, **given}:
            if name in _FREE:
                continue
            found = _difference(
                own.get(name), given.get(name), f'{key}.{name}')
            if found:
                return found
        return None
    if isinstance(own, (list, tuple)) and isinstance(given, (list, tuple)):
        own, given = list(own), list(given)
    if own != given:
        return f'{key} is {own!r:.60} in the file and {given!r:.60}'
    return None
