"""What a graph's file says of itself, and whether it is whole."""
from typing import Any, Dict, Mapping, Optional, Sequence

import onnx
from google.protobuf.message import DecodeError

from lcq_mmdet.errors import LCQError

from ..files import check_version, checksum, checksum_of_text, from_literal

FORMAT = 'lcq_mmdet.onnx'
VERSION = 1
# What may differ between the config of a file and the one that it runs with.
_FREE = ('train_cfg', 'init_cfg', 'pretrained')
# What a graph with boxes in it has done already, and mmdet does for others.
_AFTER = ('test_cfg', )
#: What a self-contained graph says of itself, as JSON.
DETECTOR = 'detector'


def load_graph(path: str, config: Mapping[str, Any]) -> onnx.ModelProto:
    """Read a graph that ``lcq export`` wrote.

    Args:
        path: Path of the file.
        config: The model's part of the config of the quantized detector.

    Raises:
        LCQError: If the file cannot be read, is altered, of another version
            or of another config; names the file.
    """
    model = read_graph(path)
    try:
        own = _read_metadata(model)
    except LCQError as error:
        raise LCQError(f'{path}: {error}') from None
    free = _FREE if is_self_contained(model) else _FREE + _AFTER
    difference = _difference(own['model'], config, 'model', free)
    if difference:
        raise LCQError(f'{path}: is of another config: {difference}')
    return model


def is_self_contained(model: onnx.ModelProto) -> bool:
    """Tell whether a graph gives boxes, and not what heads compute."""
    return any(entry.key == DETECTOR for entry in model.metadata_props)


def write_metadata(model: onnx.ModelProto, config: str, meta: str,
                   **more: str) -> None:
    """Write what a reader checks, and what else is given, into metadata."""
    metadata = dict(
        format=FORMAT,
        version=str(VERSION),
        config=config,
        meta=meta,
        graph=_graph_checksum(model),
        **more)
    metadata['checksum'] = checksum_of_text(metadata)
    onnx.helper.set_model_props(model, metadata)


def read_graph(path: str) -> onnx.ModelProto:
    """Read any ONNX file.

    Raises:
        LCQError: If it is none.
    """
    try:
        return onnx.load(path)
    except (OSError, DecodeError) as error:
        raise LCQError(f'{path}: is no ONNX file that can be read: '
                       f'{error}') from None


def _graph_checksum(model: onnx.ModelProto) -> str:
    return checksum(model.graph.SerializeToString(deterministic=True))


def _read_metadata(model: onnx.ModelProto) -> Dict[str, Any]:
    """Return the config of a file after checking the rest."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get('format') != FORMAT:
        raise LCQError('is not a graph of lcq export')
    check_version(metadata, VERSION)
    if metadata.pop('checksum', None) != checksum_of_text(metadata):
        raise LCQError('is altered: its metadata do not fit their checksum')
    if metadata['graph'] != _graph_checksum(model):
        raise LCQError('is altered: its graph does not fit its checksum')
    return from_literal(metadata['config'])


def _difference(own: Any, given: Any, key: str,
                free: Sequence[str]) -> Optional[str]:
    """Describe the first difference of two configs, if there is any."""
    if isinstance(own, Mapping) and isinstance(given, Mapping):
        for name in {**own, **given}:
            # Building a detector copies its test_cfg into its heads.
            if name in free or name in _AFTER and key != 'model':
                continue
            found = _difference(
                own.get(name), given.get(name), f'{key}.{name}', free)
            if found:
                return found
        return None
    if isinstance(own, (list, tuple)) and isinstance(given, (list, tuple)):
        own, given = list(own), list(given)
    if own != given:
        return f'{key} is {own!r:.60} in the file and {given!r:.60}'
    return None
