"""What a saved quantizer was fitted for, beside what it is to be used for."""
from typing import Any, Dict, Mapping, NamedTuple, Optional

import torch
from torch import Tensor

from .config import WEIGHT_NORMS

# What LCQ and uniform quantizers, and what LSQ's have alone.
_CLIP, _STEP = 'clip', 'step'
_SIGNED = {True: 'levels above an offset', False: 'symmetric levels'}


class Misfit(NamedTuple):
    """Why the saved values of a quantizer are not used.

    Attributes:
        reason: In words.
        can_be_kept: Whether the values mean something all the same.
    """
    reason: str
    can_be_kept: bool = False


def settings_of(bits: int, weight_norm: str) -> Tensor:
    """Write down what clip, theta and offset depend on.

    Returns:
        The bits and the place of ``weight_norm`` in ``WEIGHT_NORMS``, int64,
        shape (2). What else they depend on shows in themselves.
    """
    return torch.tensor([bits, WEIGHT_NORMS.index(weight_norm)])


def adapt_(quantizer: Any, state: Dict[str, Tensor],
           prefix: str) -> Optional[Misfit]:
    """Compare a saved quantizer with one that is to take its values over.

    Args:
        quantizer: An :class:`~lcq_mmdet.LCQQuantizer`.
        state: A state dict. In it, values of another shape or of another
            kind of levels give way to those of ``quantizer``, and what does
            not fit becomes not initialized.
        prefix: What the keys of the quantizer begin with.

    Returns:
        Why its values are not used, if so.
    """
    own = quantizer.state_dict()
    foreign = _CLIP if _STEP in own else _STEP
    if prefix + foreign in state:
        _replace(state, prefix, own)
        return Misfit(f'the checkpoint has a {foreign} and the config '
                      f'quantizer={quantizer.config.quantizer!r}')
    given = {key: state[prefix + key] for key in own if prefix + key in state}
    if _CLIP not in given and _STEP not in given:
        return quantizer.misfit
    has_offset = f'{prefix}offset' in state
    misfit = None
    if given.get('initialized', True):
        misfit = _compare(quantizer, given, has_offset)
    state[f'{prefix}settings'] = own['settings']
    if misfit:
        state[f'{prefix}initialized'] = torch.zeros_like(own['initialized'])
    if 'theta' in given and given['theta'].shape != own['theta'].shape:
        state[f'{prefix}theta'] = own['theta']
    if 'offset' in own:
        state.setdefault(f'{prefix}offset', own['offset'])
    else:
        state.pop(f'{prefix}offset', None)
    return misfit


def _replace(state: Dict[str, Tensor], prefix: str,
             own: Mapping[str, Tensor]) -> None:
    """Put values that are not initialized in the place of a state."""
    for key in list(state):
        if key.rpartition('.')[0] + '.' == prefix:
            del state[key]
    state.update({prefix + key: value for key, value in own.items()})
    state[f'{prefix}initialized'] = torch.zeros_like(own['initialized'])


def _compare(quantizer: Any, given: Mapping[str, Tensor],
             has_offset: bool) -> Optional[Misfit]:

    def misfit(found: str, wanted: object, keep: bool = False) -> Misfit:
        return Misfit(f'the checkpoint has {found} and the config {wanted}',
                      can_be_kept=keep)

    # Checkpoints written before there were settings are taken as they are.
    bits, norm = given.get('settings', quantizer.settings).tolist()
    if _STEP in given:
        return None if bits == quantizer.bits else misfit(
            f'{bits} bits', quantizer.bits)
    wants_offset = quantizer.offset is not None
    if given.get('signed', True) and has_offset != wants_offset:
        return misfit(_SIGNED[has_offset], _SIGNED[wants_offset])
    theta = given.get('theta', quantizer.theta)
    if theta.shape != quantizer.theta.shape:
        return misfit(f'{len(theta)} intervals', len(quantizer.theta))
    if quantizer.config.quantizer == 'uniform' and theta.any():
        return misfit('a learned compander', "quantizer='uniform'")
    if WEIGHT_NORMS[norm] != quantizer.weight_norm:
        return misfit(f'weight_norm={WEIGHT_NORMS[norm]!r}',
                      repr(quantizer.weight_norm))
    if bits != quantizer.bits:
        return misfit(f'{bits} bits', quantizer.bits, keep=True)
    return None
