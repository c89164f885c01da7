"""The float detector that a study starts from."""
from mmengine.config import Config

from lcq_mmdet.conversion.building import build_model
from lcq_mmdet.conversion.checkpoint import (match_keys, packed_layers,
                                             read_checkpoint)
from lcq_mmdet.conversion.model import float_config
from lcq_mmdet.errors import LCQError, some


def check_float(cfg: Config) -> None:
    """Check that ``load_from`` is a checkpoint of the float detector.

    Raises:
        LCQError: If it is not set, cannot be read, or lacks keys.
    """
    path = cfg.get('load_from')
    if not path:
        raise LCQError(
            'load_from: a sweep starts from a trained float detector; name '
            'its checkpoint with --cfg-options load_from=...')
    model = build_model(float_config(cfg))
    checkpoint = read_checkpoint(path, 'load_from')
    if packed_layers(checkpoint):
        raise LCQError(f'load_from={path!r}: is a packed checkpoint, which '
                       'has no float weights')
    missing = match_keys(model, checkpoint).missing
    if missing:
        raise LCQError(
            f'load_from={path!r}: is not of this detector, it has not, or '
            f'not in the same shape, {some(missing)} keys')
