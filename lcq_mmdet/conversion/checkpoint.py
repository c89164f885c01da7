"""How a checkpoint fits a model."""
from pickle import UnpicklingError
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError, some
from lcq_mmdet.quantization.layers import lcq_layers

from .predictors import is_last_layer

#: What the metadata of a packed file's state dict keeps its layers under.
PACKED = 'lcq_packed'
#: How the keys end that say what quantizers were fitted for.
SETTINGS = '_quantizer.settings'
_FLAG = '.weight_quantizer.packed'
# A model has a value for these that a checkpoint without them stands for.
_OPTIONAL = ('num_batches_tracked', _FLAG, SETTINGS)


class KeyMatch(NamedTuple):
    """The keys of a checkpoint beside a model's, those of quantizers left out.

    Attributes:
        matched: Keys that both have, in the same shape.
        missing: Keys that only the model has, or has in another shape.
        unexpected: Keys that only the checkpoint has, or has in another
            shape.
        resized: Those that both have in another shape: that of the
            checkpoint, and that of the model.
    """
    matched: List[str]
    missing: List[str]
    unexpected: List[str]
    resized: Dict[str, Tuple[torch.Size, torch.Size]] = {}

    def __str__(self) -> str:
        return (f'{len(self.matched)} keys matched, '
                f'{some(self.missing)} missing, '
                f'{some(self.unexpected)} unexpected')


def read_checkpoint(path: str, key: str) -> Dict[str, Any]:
    """Read a checkpoint of any kind that is registered with mmengine.

    Args:
        path: Path or address.
        key: What the path was given with, for the error message.

    Raises:
        LCQError: If it cannot be read.
    """
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu')
        if not any(isinstance(v, Tensor)
                   for v in state_of(checkpoint).values()):
            raise TypeError('there are no tensors in it')
        return checkpoint
    except LCQError:
        raise
    except (OSError, RuntimeError, EOFError, UnpicklingError, AttributeError,
            TypeError, LookupError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise LCQError(f'{key}={path!r}: is not a checkpoint that can be '
                       f'read: {text}') from None


def state_of(checkpoint: Mapping[str, Any]) -> Dict[str, Tensor]:
    """Return a checkpoint's tensors by the keys of a model not wrapped.

    Args:
        checkpoint: A state dict, or a dictionary with one as
            ``state_dict``; ``module.`` before its keys is ignored.
    """
    state = checkpoint.get('state_dict', checkpoint)
    return {
        key[len('module.'):] if key.startswith('module.') else key: value
        for key, value in state.items()
    }


def packed_layers(checkpoint: Mapping[str, Any]) -> List[str]:
    """Name the layers whose weight in a checkpoint is quantized for good."""
    return [
        key[:-len(_FLAG)] for key, value in state_of(checkpoint).items()
        if key.endswith(_FLAG) and value
    ]


def check_keys(own: Mapping[str, Tensor], given: Mapping[str, Tensor],
               where: str) -> None:
    """Raise an ``LCQError`` unless all keys and shapes are the same.

    Args:
        own: State dict of the model that the config describes.
        given: State dict of the checkpoint.
        where: What the checkpoint is called in the error message.
    """
    for key, value in own.items():
        if key not in given:
            if key.endswith(_OPTIONAL):
                continue
            raise LCQError(f'{where}: does not fit the config, it has no '
                           f'{key}')
        if given[key].shape != value.shape:
            raise LCQError(
                f'{where}: does not fit the config, its {key} has the shape '
                f'{tuple(given[key].shape)} and not {tuple(value.shape)}')
    for key in given:
        if key not in own:
            raise LCQError(f'{where}: does not fit the config, in which there '
                           f'is no {key}')


def check_packed(model: nn.Module, state: Mapping[str, Tensor], prefix: str,
                 local_metadata: Mapping[str, Any], *args: Any) -> None:
    """Raise an ``LCQError`` before a packed file's state is misread.

    A hook of a converted model, called before it loads a state dict; does
    nothing where that comes from no packed file.
    """
    layers = local_metadata.get(PACKED)
    if layers is None:
        return
    where = 'packed checkpoint'
    own = dict(lcq_layers(model))
    for name in [*own, *layers]:
        if name not in layers:
            raise LCQError(f'{where}: does not fit the config, which '
                           f'quantizes {name}; in the file it is in float')
        if name not in own:
            raise LCQError(f'{where}: does not fit the config, which leaves '
                           f'{name} in float; in the file it is quantized')
        config = own[name].weight_quantizer.config
        for key in ('weight_bits', 'act_bits', 'signed_act', 'out_bits'):
            if layers[name][key] != getattr(config, key):
                raise LCQError(
                    f'{where}: does not fit the config, {name} has '
                    f'{key}={layers[name][key]!r} in the file and '
                    f'{getattr(config, key)!r} in the config')
    check_keys(model.state_dict(prefix=prefix), state, where)


def match_keys(model: nn.Module, checkpoint: Mapping[str, Any]) -> KeyMatch:
    """Compare a checkpoint's float keys with the model's.

    Args:
        model: Any module, not wrapped.
        checkpoint: A state dict, or a dictionary with one as
            ``state_dict``; ``module.`` before its keys is ignored.
    """
    given = {
        key: value
        for key, value in state_of(checkpoint).items()
        if '_quantizer.' not in key
    }
    own = {
        key: value
        for key, value in model.state_dict().items()
        if '_quantizer.' not in key
    }
    matched = [
        key for key, value in own.items()
        if key in given and given[key].shape == value.shape
    ]
    resized = {
        key: (given[key].shape, value.shape)
        for key, value in own.items()
        if key in given and given[key].shape != value.shape
    }
    return KeyMatch(matched, sorted(own.keys() - set(matched)),
                    sorted(given.keys() - set(matched)), resized)


def of_other_classes(model: nn.Module, match: KeyMatch) -> List[str]:
    """Name the layers that a checkpoint has for other numbers of classes.

    They are the last ones of a head, and differ in their outputs alone.

    Args:
        model: The model that ``match`` compares with.
        match: What :func:`match_keys` gives.
    """
    same: Dict[str, bool] = {}
    for key, (found, wanted) in match.resized.items():
        layer = key.rpartition('.')[0]
        same[layer] = same.get(layer, True) and found[1:] == wanted[1:]
    return [
        layer for layer, is_alike in same.items()
        if is_alike and 'head' in layer and is_last_layer(model, layer)
    ]


def match_quantizers_(model: nn.Module,
                      checkpoint: Mapping[str, Any]) -> List[str]:
    """Give a checkpoint the quantizers that a model has, in place.

    Those that it lacks are added as they are in the model, and those that the
    model lacks are left out, so that loading it has nothing to tell of them.

    Args:
        model: A converted model, not wrapped.
        checkpoint: A state dict, or a dictionary with one as
            ``state_dict``; ``module.`` before its keys is ignored.

    Returns:
        Names of the quantizers that were left out.
    """
    state: Dict[str, Tensor] = checkpoint.get('state_dict', checkpoint)
    own = {
        key: value
        for key, value in model.state_dict().items() if _quantizer_of(key)
    }
    given = {key: _quantizer_of(key) for key in state}
    found, wanted = set(given.values()), {_quantizer_of(key) for key in own}
    for key, value in own.items():
        # A weight that comes in float says by itself that it is not packed.
        if _quantizer_of(key) not in found and not key.endswith(_FLAG):
            state[key] = value
    for key, name in given.items():
        if name and name not in wanted:
            del state[key]
    return sorted(found - wanted - {''})


def _quantizer_of(key: str) -> str:
    """Name the quantizer that a key belongs to; empty for other keys."""
    name = key.rpartition('.')[0]
    if name.startswith('module.'):
        name = name[len('module.'):]
    return name if name.endswith('_quantizer') else ''
