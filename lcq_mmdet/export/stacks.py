"""Small tensors that all layers have, as one tensor each.

An entry of a file's header takes more bytes than a clip does.
"""
from typing import Dict, List, Mapping, Sequence

import torch
from torch import Tensor

from lcq_mmdet.errors import LCQError

#: What stands for the names of all layers in the name of a stack.
ALL = '*'


def stack(tensors: Mapping[str, Tensor], layers: Sequence[str],
          suffixes: Sequence[str]) -> Dict[str, Tensor]:
    """Stack what layers have in common.

    Args:
        tensors: Tensors by name.
        layers: Names of the layers, in order.
        suffixes: What their names are followed by.

    Returns:
        Tensors by name: ``*.act_quantizer.clip`` has the values of
        ``L.act_quantizer.clip`` as its rows, for the layers that have one.
        What differs in shape or dtype from the first layer's stays as it is.

    Examples:
        >>> stack({'a.x': torch.ones(2), 'b.x': torch.zeros(2)}, 'ab', ['.x'])
        {'*.x': tensor([[1., 1.],
                [0., 0.]])}
    """
    stacked = dict(tensors)
    for suffix in suffixes:
        keys = [f'{name}{suffix}' for name in layers]
        rows = {key: tensors[key] for key in keys if key in tensors}
        first = next(iter(rows.values()))
        alike: List[Tensor] = []
        for key, value in rows.items():
            if (value.shape, value.dtype) == (first.shape, first.dtype):
                alike.append(stacked.pop(key))
        stacked[f'{ALL}{suffix}'] = torch.stack(alike)
    return stacked


def unstack(tensors: Mapping[str, Tensor], layers: Sequence[str],
            aliases: Mapping[str, str]) -> Dict[str, Tensor]:
    """Undo :func:`stack`.

    Args:
        tensors: Tensors by name.
        layers: Names of the layers, in order.
        aliases: Keys that no tensor is kept under.

    Raises:
        LCQError: If a stack does not have a row for each layer.
    """
    found = {
        key: value for key, value in tensors.items()
        if not key.startswith(ALL)
    }
    for key, value in tensors.items():
        if not key.startswith(ALL):
            continue
        suffix = key[len(ALL):]
        keys = [f'{name}{suffix}' for name in layers]
        keys = [key for key in keys
                if key not in tensors and key not in aliases]
        if not value.dim() or len(value) != len(keys):
            raise LCQError(f'is altered: {key} has the shape '
                           f'{tuple(value.shape)} for {len(keys)} layers')
        # Rows are views: a checksum is over the bytes that are in the file.
        found.update(zip(keys, value))
    return found
