"""What a checkpoint brought to a model, and what is made of it."""
from typing import Any, Dict, List, NamedTuple, Optional

from torch import nn

from lcq_mmdet.conversion.checkpoint import (KeyMatch, match_keys,
                                             match_quantizers_,
                                             of_other_classes)
from lcq_mmdet.errors import LCQError, some
from lcq_mmdet.quantization.layers import lcq_layers, lcq_quantizers
from lcq_mmdet.quantization.loading import Misfit

_REMEDY = ('or set default_hooks.lcq.require_float=False to go on all the '
           'same')


class Loaded(NamedTuple):
    """A checkpoint beside the model that it is loaded into.

    Attributes:
        keys: Its float keys.
        unused: Names of its quantizers that the model does not have.
        is_resumed: Whether a training goes on from it.
    """
    keys: KeyMatch
    unused: List[str]
    is_resumed: bool

    @classmethod
    def of(cls, model: nn.Module, checkpoint: Dict[str, Any],
           is_resumed: bool) -> 'Loaded':
        """Compare a checkpoint with a converted model before it is loaded.

        The checkpoint's quantizers become those of the model, in place.
        """
        keys = match_keys(model, checkpoint)
        return cls(keys, match_quantizers_(model, checkpoint), is_resumed)


class Origins(NamedTuple):
    """Where the values of a model's quantizers come from.

    Attributes:
        num_quantizers: Number of them all.
        anew: Names of those whose values are not used, by the reason.
        kept: Names of those whose values are used all the same, likewise.
        absent: Names of those that the checkpoint does not have.
    """
    num_quantizers: int
    anew: Dict[str, List[str]]
    kept: Dict[str, List[str]]
    absent: List[str]

    @property
    def num_missing(self) -> int:
        """Count those that are to be calibrated."""
        return len(self.absent) + sum(map(len, self.anew.values()))

    def describe(self, calibrated: str, unused: List[str]) -> str:
        """Tell in one line which quantizers came from where, and why.

        Args:
            calibrated: What those to be calibrated were fitted to.
            unused: Names of the checkpoint's other quantizers.
        """
        num_loaded = self.num_quantizers - self.num_missing
        parts = [f'all {num_loaded} quantizers came with the checkpoint']
        if self.num_missing:
            parts = [f'{self.num_missing} quantizers {calibrated}, '
                     f'{num_loaded} came with the checkpoint']
            if self.absent and (num_loaded or self.anew):
                parts.append(f'not in the checkpoint: {some(self.absent)}')
        for reason, names in self.anew.items():
            parts.append(f'calibrated anew: {self._some(names)}, {reason}')
        for reason, names in self.kept.items():
            parts.append(f'kept: {self._some(names)}, although {reason}')
        if unused:
            parts.append('of the checkpoint, not in the model: '
                         f'{some(unused)}')
        return '; '.join(parts)

    def _some(self, names: List[str]) -> str:
        count, _, shown = some(names).partition(' ')
        return f'{count} of {self.num_quantizers} {shown}'


def check_float(model: nn.Module, loaded: Optional[Loaded]) -> None:
    """Raise an ``LCQError`` unless all quantized modules were loaded.

    A head may be of another number of classes.
    """
    if loaded is None:
        raise LCQError(
            'load_from: no float checkpoint was loaded, and quantization '
            f'starts from a trained detector; set load_from, {_REMEDY}')
    modules = {name.split('.')[0] for name, _ in lcq_layers(model)}
    anew = of_other_classes(model, loaded.keys)
    missing = [
        key for key in loaded.keys.missing
        if key.split('.')[0] in modules and key.rpartition('.')[0] not in anew
    ]
    if missing:
        raise LCQError(
            'load_from: the checkpoint is of another architecture, it has '
            f'not, or not in the same shape, {some(missing)} keys of '
            f'{", ".join(sorted(modules))}; give the float checkpoint of '
            f'this model, {_REMEDY}')


def classes_remark(model: nn.Module,
                   loaded: Optional[Loaded]) -> Optional[str]:
    """Name the layers that are of another number of classes, if any are."""
    if loaded is None:
        return None
    resized = loaded.keys.resized
    layers = [
        '{} ({} outputs in the checkpoint, {} in the model)'.format(
            name, *(shape[0] for shape in resized[f'{name}.weight']))
        for name in of_other_classes(model, loaded.keys)
        if f'{name}.weight' in resized
    ]
    if not layers:
        return None
    return ('load_from: of another number of classes, these layers start '
            f'anew: {", ".join(layers)}')


def settle_(model: nn.Module, loaded: Optional[Loaded],
            keep: bool) -> Origins:
    """Decide which values of quantizers are used, in place.

    Args:
        model: A converted model, loaded.
        loaded: What it was loaded from, if anything.
        keep: Whether to use values that were fitted for other bits.

    Raises:
        LCQError: If a training goes on from a checkpoint whose quantizers
            do not fit.
    """
    quantizers = dict(lcq_quantizers(model))
    missing = set(loaded.keys.missing) if loaded else set()
    for name, layer in lcq_layers(model):
        quantizer = layer.weight_quantizer
        if f'{name}.weight' in missing and quantizer.is_initialized:
            quantizer.discard_(Misfit('their weights start anew'))
    anew: Dict[str, List[str]] = {}
    kept: Dict[str, List[str]] = {}
    absent = []
    for name, quantizer in quantizers.items():
        misfit = quantizer.misfit
        if misfit is None:
            if not quantizer.is_initialized:
                absent.append(name)
        elif keep and misfit.can_be_kept:
            quantizer.keep_()
            kept.setdefault(misfit.reason, []).append(name)
        else:
            anew.setdefault(misfit.reason, []).append(name)
    if anew and loaded and loaded.is_resumed:
        reason, names = next(iter(anew.items()))
        raise LCQError(f'resume: of {some(names)} quantizers {reason}; resume '
                       'with the config of that run, or start a new one with '
                       'load_from')
    return Origins(len(quantizers), anew, kept, absent)
