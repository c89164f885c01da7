"""Replace layers by quantized ones, by name and in place."""
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.config import QuantizerConfig
from lcq_mmdet.quantization.layers import QuantizedLayer
from lcq_mmdet.quantization.mmcv_layers import QUANTIZED, LCQConvTranspose2d
from lcq_mmdet.quantization.pyramid import begin_levels, count_levels

from .checkpoint import check_packed
from .config import ConversionConfig
from .patterns import check_patterns, matches, matching
from .predictors import is_last_layer
from .selection import weighted_layers

#: What is quantized where nothing is asked for, as far as it is there.
DEFAULT_MODULES = ('backbone', 'neck', '*.backbone', '*.neck')


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
             config: Optional[ConversionConfig] = None,
             **options: Any) -> ConversionSummary:
    """Replace convolutions and linear layers by quantized ones, in place.

    Args:
        model: Any module; parameters stay the same objects.
        config: What becomes of which layer; or
        **options: the same in flat keys: ``bits`` and the fields of
            :class:`ConversionConfig` and :class:`QuantizerConfig`.

    Returns:
        What was replaced and what was not; it is also kept on the model, as
        ``lcq_summary``.

    Raises:
        LCQError: If an option is unknown or out of range, a pattern matches
            no layer, nothing is left to quantize, or the model is converted
            already. The model is unchanged then.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),
        ...                       nn.Conv2d(8, 8, 3))
        >>> convert_(model, bits=4, modules=['*']).quantized
        ('0', '2')
    """
    if config is None:
        config = ConversionConfig.from_options(options)
    elif options:
        raise LCQError(f'{next(iter(options))}: is given beside config; set '
                       'it there')
    first, configs, left_float = _choose(model, config)
    heads = count_levels(model)
    num_levels = _pyramid_levels(configs, heads)
    replaced = _replace_(model, configs, num_levels)
    if num_levels:
        # Detectors call a head, or past its hooks its forward.
        for part in (model, *map(model.get_submodule, heads)):
            part.register_forward_pre_hook(begin_levels)
    if first in configs and config.first_layer_bits is not None:
        replaced[first].act_quantizer.requires_grad_(False)
    model._register_load_state_dict_pre_hook(check_packed, with_module=True)
    summary = ConversionSummary(tuple(configs), left_float)
    model.lcq_summary = summary  # type: ignore[assignment]
    return summary


def _choose(
    model: nn.Module, config: ConversionConfig
) -> Tuple[str, Dict[str, QuantizerConfig], Dict[str, str]]:
    """Resolve the settings of each layer, or why it stays in float.

    Returns:
        Name of the first convolution, settings by name, reasons by name.
    """
    layers = dict(weighted_layers(model))
    if any(isinstance(layer, QuantizedLayer) for layer in layers.values()):
        raise LCQError('model: is converted already')
    modules = (
        _default_modules(layers)
        if config.modules is None else config.modules)
    check_patterns('modules', modules, layers)
    check_patterns('exclude', config.exclude, layers)
    check_patterns('overrides', list(config.overrides), layers)
    bits = {
        name: config.last_layer_bits
        for name in layers if is_last_layer(model, name)
    }
    first = next((name for name, layer in layers.items()
                  if isinstance(layer, nn.Conv2d)), '')
    bits[first] = config.first_layer_bits
    configs: Dict[str, QuantizerConfig] = {}
    left_float: Dict[str, str] = {}
    for name, layer in layers.items():
        own = config.of_layer(name, bits.get(name))
        reason = _reason_to_leave(name, layer, modules, config.exclude, own)
        if reason:
            left_float[name] = reason
        else:
            configs[name] = own
    if not configs:
        raise LCQError(f'modules={list(modules)!r}: there is no layer to '
                       f'quantize in them: {_most_frequent(left_float)}')
    for pattern in config.overrides:
        if not any(matches(name, pattern) for name in configs):
            raise LCQError(f'overrides: the pattern {pattern!r} covers only '
                           'layers that stay in float; extend modules or drop '
                           'it')
    return first, configs, left_float


def _pyramid_levels(configs: Mapping[str, QuantizerConfig],
                    heads: Mapping[str, int]) -> Dict[str, int]:
    """Count the pyramid levels of the layers that tell them apart."""
    num_levels = {
        name: heads[head]
        for head in heads for name in configs
        if configs[name].per_level and name.startswith(f'{head}.')
    }
    if not num_levels and any(c.per_level for c in configs.values()):
        raise LCQError(
            'per_level=True: of the layers to quantize none is in a head that '
            "takes several levels; add one to modules, such as 'bbox_head'"
            + (f' of {", ".join(heads)}' if heads else ''))
    return num_levels


def _replace_(model: nn.Module, configs: Mapping[str, QuantizerConfig],
              num_levels: Mapping[str, int]) -> Dict[str, QuantizedLayer]:
    """Put quantized layers in place of float ones, under all their names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    replaced = {
        name: QUANTIZED[type(modules[name])].from_float(
            modules[name], config, num_levels.get(name, 1))
        for name, config in configs.items()
    }
    by_identity = {id(modules[name]): new for name, new in replaced.items()}
    for name, layer in modules.items():
        if id(layer) in by_identity:
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child,
                    by_identity[id(layer)])
    return replaced


def _default_modules(layers: Mapping[str, nn.Module]) -> Sequence[str]:
    found = [
        pattern for pattern in DEFAULT_MODULES
        if any(matches(name, pattern) for name in layers)
    ]
    if not found:
        parts = dict.fromkeys(name.split('.')[0] for name in layers)
        raise LCQError(
            'modules: the model has no backbone and no neck; name the parts '
            f'to quantize, of {", ".join(map(repr, parts)) or "none"}, or '
            "modules=['*'] for all")
    return found


def _most_frequent(reasons: Mapping[str, str]) -> str:
    found = [why for why in reasons.values() if why != 'not in modules']
    return max(found, key=found.count, default='it is empty')


def _reason_to_leave(name: str, layer: nn.Module, modules: Sequence[str],
                     exclude: Sequence[str],
                     config: QuantizerConfig) -> Optional[str]:
    if not matching(name, modules):
        return 'not in modules'
    pattern = matching(name, exclude)
    if pattern:
        return f'excluded by {pattern!r}'
    if isinstance(layer,
                  (nn.MultiheadAttention, NonDynamicallyQuantizableLinear)):
        return 'MultiheadAttention reads its weight past its forward'
    if not name:
        return 'the model is this layer, which cannot be replaced in place'
    kind = type(layer).__name__
    if type(layer) not in QUANTIZED:
        return f'{kind} is of no kind that can be quantized'
    if not isinstance(layer.weight, nn.Parameter):
        return 'its weight is computed by a hook'
    if (QUANTIZED[type(layer)] is LCQConvTranspose2d
            and config.weight_norm == 'channel'):
        return (f"weight_norm='channel' does not fit a {kind}, whose weight "
                'has the output channels second')
    return None
