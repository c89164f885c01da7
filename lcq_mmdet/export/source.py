"""The trained model that an export starts from."""
from typing import Any, Dict, Tuple

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from lcq_mmdet.checkpoint import check_keys, read_checkpoint, state_of
from lcq_mmdet.errors import LCQError


def load_quantized(cfg: Config, path: str) -> Tuple[nn.Module, Dict[str, Any]]:
    """Build the model of a config and fill it from a checkpoint, completely.

    Args:
        cfg: Config of a quantized detector.
        path: Checkpoint of its training.

    Returns:
        The model in eval mode, and the checkpoint's ``meta``.

    Raises:
        LCQError: If the config or the checkpoint is of a float model, or one
            does not fit the other; names the layer.
    """
    if cfg.get('model', {}).get('type') != 'LCQModel':
        raise LCQError('model.type: the config is of a float model; give the '
                       'config of the quantized one, or --bits as in its '
                       'training')
    checkpoint = read_checkpoint(path, 'checkpoint')
    state = state_of(checkpoint)
    where = f'checkpoint={path!r}'
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with MODELS.switch_scope_and_registry(None) as registry:
        model = registry.build(cfg.model)
    own = model.state_dict()
    if not any('_quantizer.' in key for key in state):
        name = next(key for key in own if '_quantizer.' in key)
        raise LCQError(f'{where}: still is float, it has no {name}; '
                       'fine-tune with tools/train.py first')
    check_keys(own, state, where)
    model.load_state_dict(state, strict=False)
    return model.eval(), dict(checkpoint.get('meta', {}))
