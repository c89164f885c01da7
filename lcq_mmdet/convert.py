"""Replace convolutions by quantized ones, by name and in place."""
import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import (Any, Dict, Iterable, Iterator, List, Mapping, Optional,
                    Sequence, Tuple)

from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from lcq_mmdet.checkpoint import check_packed
from lcq_mmdet.config import QuantizerConfig
from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import check_bits
from lcq_mmdet.layers import LCQConv2d, lcq_layers

_PLAIN_CONVS = (nn.Conv2d, MMCVConv2d)


@dataclass(frozen=True)
class ConversionSummary:
    """What became of a model's layers.

    Attributes:
        quantized: Names of the layers that were replaced, in model order.
        left_float: Why a layer with a weight matrix stays in float, by name.
    """
    quantized: Tuple[str, ...]
    left_float: Mapping[str, str]

    def __str__(self) -> str:
        rows = [f'{len(self.quantized)} layers quantized, '
                f'{len(self.left_float)} left in float']
        width = max(map(len, self.left_float), default=0)
        rows += [
            f'  {name:{width}}  {why}'
            for name, why in self.left_float.items()
        ]
        return '\n'.join(rows)


def convert_(model: nn.Module,
             modules: Sequence[str] = ('backbone', 'neck'),
             first_layer_bits: Optional[int] = 8,
             exclude: Sequence[str] = (),
             overrides: Optional[Mapping[str, Mapping[str, Any]]] = None,
             **options) -> ConversionSummary:
    """Replace convolutions by :class:`LCQConv2d`, in place.

    A pattern is a layer's or module's qualified name, in which ``*``, ``?``
    and ``[]`` match as in file names; it covers all that lies below.

    Args:
        model: Any module; parameters stay the same objects.
        modules: Patterns of what to quantize.
        first_layer_bits: Bit-width of weight and input of the model's first
            convolution, 2 to 8; ``None`` treats it as any other. Its input,
            the image, keeps the quantizer that calibration gives it: data
            needs no gradient, and the one of the largest map is dear.
        exclude: Patterns of what to leave in float all the same.
        overrides: Settings of some layers by pattern, such as
            ``{'neck': dict(bits=8)}``; later patterns win.
        **options: ``bits`` and the settings of :class:`QuantizerConfig`.

    Returns:
        What was replaced and what was not; it is also kept on the model, as
        ``lcq_summary``.

    Raises:
        LCQError: If an option is unknown or out of range, a pattern matches
            no layer, nothing is left to quantize, or the model is converted
            already. The model is unchanged then.
    """
    config = QuantizerConfig().updated(options)
    if first_layer_bits is not None:
        check_bits(first_layer_bits, 'first_layer_bits')
    overrides = overrides or {}
    layers = dict(_weighted_layers(model))
    if any(isinstance(layer, LCQConv2d) for layer in layers.values()):
        raise LCQError('model: is converted already')
    _check_patterns('modules', modules, layers)
    _check_patterns('exclude', exclude, layers)
    _check_patterns('overrides', overrides, layers)

    first = next((name for name, layer in layers.items()
                  if isinstance(layer, nn.Conv2d)), None)
    configs: Dict[str, QuantizerConfig] = {}
    left_float: Dict[str, str] = {}
    for name, layer in layers.items():
        reason = _reason_to_leave(name, layer, modules, exclude)
        if reason:
            left_float[name] = reason
            continue
        layer_config = config
        if name == first and first_layer_bits is not None:
            layer_config = config.updated({'bits': first_layer_bits})
        for pattern, settings in overrides.items():
            if _matches(name, pattern):
                layer_config = layer_config.updated(
                    settings, f'overrides[{pattern!r}].')
        configs[name] = layer_config
    if not configs:
        raise LCQError(f'modules={list(modules)!r}: there is no convolution '
                       'to quantize in them')

    replaced: Dict[int, LCQConv2d] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if name in configs:
            replaced[id(layer)] = LCQConv2d.from_conv2d(layer, configs[name])
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if id(layer) in replaced:
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child, replaced[id(layer)])
    if first in configs and first_layer_bits is not None:
        model.get_submodule(first).act_quantizer.requires_grad_(False)
    model._register_load_state_dict_pre_hook(check_packed, with_module=True)
    summary = ConversionSummary(tuple(configs), left_float)
    model.lcq_summary = summary  # type: ignore[assignment]
    return summary


def select_layers(model: nn.Module,
                  patterns: Sequence[str],
                  key: str = 'layers') -> Dict[str, LCQConv2d]:
    """Select quantized layers by pattern, as :func:`convert_` does.

    Args:
        model: A converted model, not wrapped.
        patterns: Patterns of qualified names.
        key: What the patterns are set with, for the error message.

    Returns:
        Layers by qualified name, in model order.

    Raises:
        LCQError: If a pattern matches no quantized layer.
    """
    layers = dict(lcq_layers(model))
    if not layers:
        raise LCQError(f'{key}={patterns!r}: the model has no quantized layer')
    _check_patterns(key, patterns, layers)
    return {
        name: layer
        for name, layer in layers.items() if _matching(name, patterns)
    }


def unwrap(model: nn.Module) -> nn.Module:
    """Take a model out of what a runner wraps around it."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module  # type: ignore[assignment]
    return model


def _weighted_layers(model: nn.Module) -> Iterator[Tuple[str, nn.Module]]:
    """Iterate over the layers that multiply by a weight matrix."""
    for name, module in model.named_modules():
        weight = getattr(module, 'weight', None)
        if getattr(weight, 'ndim', 0) >= 2:
            yield name, module


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f'{pattern}.*')


def _matching(name: str, patterns: Iterable[str]) -> Optional[str]:
    return next((p for p in patterns if _matches(name, p)), None)


def _check_patterns(key: str, patterns: Iterable[str],
                    names: Iterable[str]) -> None:
    if isinstance(patterns, str):
        raise LCQError(f'{key}={patterns!r}: must be a list of patterns')
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise LCQError(f'{key}: the pattern {pattern!r} matches no layer'
                           f'{_suggestion(pattern, names)}')


def _suggestion(pattern: str, names: Iterable[str]) -> str:
    prefixes: List[str] = []
    for name in names:
        parts = name.split('.')
        prefixes += ['.'.join(parts[:n + 1]) for n in range(len(parts))]
    close = difflib.get_close_matches(pattern, prefixes, n=1)
    return f'; did you mean {close[0]!r}?' if close else ''


def _reason_to_leave(name: str, layer: nn.Module, modules: Sequence[str],
                     exclude: Sequence[str]) -> Optional[str]:
    if not _matching(name, modules):
        return 'not in modules'
    pattern = _matching(name, exclude)
    if pattern:
        return f'excluded by {pattern!r}'
    kind = type(layer).__name__
    if not isinstance(layer, nn.Conv2d):
        return f'{kind} is not a convolution that can be quantized'
    if type(layer) not in _PLAIN_CONVS:
        return f'{kind} has a forward of its own'
    if not isinstance(layer.weight, nn.Parameter):
        return 'its weight is computed by a hook'
    return None
