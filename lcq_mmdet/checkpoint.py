"""How a checkpoint's float keys fit a model."""
from typing import Any, List, Mapping, NamedTuple

from torch import nn


class KeyMatch(NamedTuple):
    """The keys of a checkpoint beside a model's, those of quantizers left out.

    Attributes:
        matched: Keys that both have, in the same shape.
        missing: Keys that only the model has, or has in another shape.
        unexpected: Keys that only the checkpoint has, or has in another
            shape.
    """
    matched: List[str]
    missing: List[str]
    unexpected: List[str]

    def __str__(self) -> str:
        return (f'{len(self.matched)} keys matched, '
                f'{some(self.missing)} missing, '
                f'{some(self.unexpected)} unexpected')


def match_keys(model: nn.Module, checkpoint: Mapping[str, Any]) -> KeyMatch:
    """Compare a checkpoint's float keys with the model's.

    Args:
        model: Any module, not wrapped.
        checkpoint: A state dict, or a dictionary with one as
            ``state_dict``; ``module.`` before its keys is ignored.
    """
    state = checkpoint.get('state_dict', checkpoint)
    given = {
        key[len('module.'):] if key.startswith('module.') else key: value
        for key, value in state.items() if '_quantizer.' not in key
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
    return KeyMatch(matched, sorted(own.keys() - set(matched)),
                    sorted(given.keys() - set(matched)))


def some(names: List[str], most: int = 3) -> str:
    """Count names and show a few."""
    if not names:
        return '0'
    shown = ', '.join(names[:most]) + (', ...' if len(names) > most else '')
    return f'{len(names)} ({shown})'
