"""The trained model that an export starts from."""
from itertools import islice
from typing import Any, Dict, Iterator, Tuple

from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from lcq_mmdet.conversion.building import build_model
from lcq_mmdet.conversion.checkpoint import (check_keys, read_checkpoint,
                                             state_of)
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.layers import lcq_quantizers

_NUM_BATCHES = 8


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
    model = build_model(cfg)
    own = model.state_dict()
    if not any('_quantizer.' in key for key in state):
        name = next(key for key in own if '_quantizer.' in key)
        raise LCQError(f'{where}: still is float, it has no {name}; '
                       'fine-tune with lcq train first')
    check_keys(own, state, where)
    model.load_state_dict(state, strict=False)
    for name, quantizer in lcq_quantizers(model):
        if quantizer.misfit:
            raise LCQError(f'{where}: does not fit the config, of {name} '
                           f'{quantizer.misfit.reason}; give the config or '
                           'the --bits of its training')
    return model.eval(), dict(checkpoint.get('meta', {}))


def training_images(cfg: Config, model: Any) -> Iterator[Tensor]:
    """Load eight batches of training images, preprocessed."""
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    for batch in islice(loader, _NUM_BATCHES):
        yield model.data_preprocessor(batch, False)['inputs']
