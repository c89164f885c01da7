"""From a config of a float detector to a quantized one."""
import copy
import difflib
import inspect
from typing import Any, Mapping, Optional

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from lcq_mmdet.datasets.configs import type_name
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.config import BITS_KEYS

from .config import OPTIONS, ConversionConfig
from .convert import convert_
from .optimizer import CONSTRUCTOR, CUSTOM_KEYS

_QUANTIZATION_KEYS = (*OPTIONS, 'frozen_stages', 'norm_eval')


@MODELS.register_module()
def LCQModel(float_type: Optional[str] = None,
             frozen_stages: Optional[int] = -1,
             norm_eval: Optional[bool] = False,
             conversion: Optional[ConversionConfig] = None,
             **cfg: Any) -> nn.Module:
    """Build a float model and convert it in place.

    The config stays flat and the result is an object of the float class, so
    keys of float checkpoints, ``init_detector`` and
    ``--cfg-options model.backbone...`` work as before.

    Args:
        float_type: Registered type of the float model.
        frozen_stages: What the backbone's key of that name becomes, where
            the config sets one: a frozen stage would freeze its clips and
            thetas too. ``None`` keeps the config's value.
        norm_eval: What the backbone's key of that name becomes, where it has
            one: quantization moves the statistics that batch normalization
            has to follow. ``None`` keeps the backbone's value.
        conversion: What becomes of which layer, in place of flat keys.
        **cfg: The float model's own keys, and the flat keys of
            :class:`~lcq_mmdet.ConversionConfig`.

    Raises:
        LCQError: If ``float_type`` is not registered, or as in
            :func:`~lcq_mmdet.convert_`.
    """
    if conversion is None:
        conversion = ConversionConfig.from_options(
            {key: cfg.pop(key) for key in OPTIONS if key in cfg})
    _check_backbone_keys(dict(frozen_stages=frozen_stages,
                              norm_eval=norm_eval))
    _check_model_keys(float_type, cfg)
    keys = cfg.get('backbone', {})
    _log_changes(keys, dict(frozen_stages=frozen_stages,
                            norm_eval=norm_eval))
    if frozen_stages is not None and 'frozen_stages' in keys:
        cfg['backbone'] = dict(keys, frozen_stages=frozen_stages)
        if frozen_stages == -1:
            # No backbone freezes any by default, and not all call that -1.
            del cfg['backbone']['frozen_stages']
    model = MODELS.build(dict(type=float_type, **cfg))
    if norm_eval is not None and hasattr(
            getattr(model, 'backbone', None), 'norm_eval'):
        model.backbone.norm_eval = norm_eval
    convert_(model, conversion)
    return model


def _log_changes(keys: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Tell which of the backbone's keys become something else."""
    changes = [
        f'{key}={keys[key]!r} becomes {value!r}'
        for key, value in wanted.items()
        if value is not None and keys.get(key, value) != value
    ]
    if changes:
        print_log(
            f'LCQ: model.backbone: {", ".join(changes)}, as quantizers are to '
            'learn and statistics to follow; set model.frozen_stages=None or '
            'model.norm_eval=None to keep yours',
            logger='current')


def _check_backbone_keys(keys: Mapping[str, Any]) -> None:
    stages, norm_eval = keys.get('frozen_stages'), keys.get('norm_eval')
    if stages is not None and (isinstance(stages, bool)
                               or not isinstance(stages, int) or stages < -1):
        raise LCQError(f'frozen_stages={stages!r}: must be an integer of -1 '
                       'or more, or None')
    if norm_eval is not None and not isinstance(norm_eval, bool):
        raise LCQError(f'norm_eval={norm_eval!r}: must be True, False or '
                       'None')


def _check_model_keys(float_type: Optional[str],
                      cfg: Mapping[str, Any]) -> None:
    """Raise an ``LCQError`` for a type or a key that there is not."""
    with MODELS.switch_scope_and_registry(None) as registry:
        try:
            known = registry.get(float_type)
        except (RuntimeError, TypeError):
            known = None
        if not callable(known):
            raise LCQError(
                f'model.float_type={float_type!r}: no such model is '
                f'registered in the scope {registry.scope!r}')
    parameters = inspect.signature(known).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    options = ('float_type', *_QUANTIZATION_KEYS)
    for key, value in cfg.items():
        if key not in parameters:
            close = difflib.get_close_matches(key, (*parameters, *options), 1)
            raise LCQError(f'model.{key}={value!r}: no such option of '
                           f'LCQModel or {float_type}' +
                           (f'; did you mean {close[0]!r}?' if close else ''))


def apply_lcq(cfg: Config,
              bits: Optional[int] = 4,
              conversion: Optional[ConversionConfig] = None,
              **options: Any) -> Config:
    """Turn any config of a float model into one of a quantized model.

    The given config is not changed. Applied to a quantized model's config,
    it changes the options that are given.

    Args:
        cfg: Config of an mmengine runner with a key ``model``.
        bits: Bit-width of weights and inputs, 2 to 8; ``None`` leaves it to
            ``weight_bits`` and ``act_bits``.
        conversion: What becomes of which layer, in place of ``bits``.
        **options: Further keys of :func:`LCQModel`.

    Raises:
        LCQError: If an option is unknown or there is no model to convert.

    Examples:
        >>> cfg = Config(dict(model=dict(type='RetinaNet')))
        >>> apply_lcq(cfg, bits=3).model
        {'type': 'LCQModel', 'float_type': 'RetinaNet', 'bits': 3}
    """
    if 'type' not in cfg.get('model', {}):
        raise LCQError('model.type: the config has none, so there is no model '
                       'to quantize')
    for key in options:
        if key not in _QUANTIZATION_KEYS:
            raise LCQError(f'{key}={options[key]!r}: no such option; there '
                           f'are {", ".join(_QUANTIZATION_KEYS)}')
    if conversion is not None:
        options.update(conversion.to_options())
    elif bits is not None:
        options['bits'] = bits
    ConversionConfig.from_options(
        {key: value for key, value in options.items() if key in OPTIONS})
    _check_backbone_keys(options)

    cfg = copy.deepcopy(cfg)
    if cfg.model.type == 'LCQModel':
        if bits is not None:
            for key in BITS_KEYS:
                cfg.model.pop(key, None)
        # Its update would merge overrides, in the order of the old ones.
        for key, value in options.items():
            cfg.model[key] = value
    else:
        float_type = cfg.model.pop('type')
        if not isinstance(float_type, str):
            # A config in pure Python has the class itself.
            float_type = f'{float_type.__module__}.{float_type.__qualname__}'
        cfg.model = dict(
            type='LCQModel', float_type=float_type, **options, **cfg.model)
        cfg.merge_from_dict(
            dict(default_hooks=dict(lcq=dict(type='LCQHook'))))
        if cfg.get('optim_wrapper'):
            cfg.optim_wrapper.setdefault('constructor', CONSTRUCTOR)
    # setdefault would return the dictionary that it puts a copy of into cfg.
    imports = cfg.get('custom_imports') or dict(
        imports=[], allow_failed_imports=False)
    if 'lcq_mmdet' not in imports['imports']:
        imports['imports'] = [*imports['imports'], 'lcq_mmdet']
    cfg.custom_imports = imports
    return cfg


def _is_own(hook: Any) -> bool:
    """Tell whether the config of a hook is of one of this package."""
    return isinstance(hook, dict) and type_name(hook).startswith('LCQ')


def float_config(cfg: Config) -> Config:
    """Undo what :func:`apply_lcq` has done to a config.

    Args:
        cfg: Config of an mmengine runner, of a quantized or a float model;
            it is not changed.
    """
    cfg = copy.deepcopy(cfg)
    if cfg.model.type == 'LCQModel':
        for key in (*_QUANTIZATION_KEYS, 'type'):
            cfg.model.pop(key, None)
        cfg.model.type = cfg.model.pop('float_type')
    hooks = cfg.get('default_hooks') or {}
    for key in [key for key in hooks if _is_own(hooks[key])]:
        del hooks[key]
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [
            hook for hook in cfg.custom_hooks if not _is_own(hook)
        ]
    optim_wrapper = cfg.get('optim_wrapper') or {}
    if optim_wrapper.get('constructor') == CONSTRUCTOR:
        del optim_wrapper['constructor']
    paramwise_cfg = optim_wrapper.get('paramwise_cfg') or {}
    custom_keys = paramwise_cfg.get('custom_keys') or {}
    for key in CUSTOM_KEYS:
        custom_keys.pop(key, None)
    # Even an empty one gives each parameter a group of its own.
    if not custom_keys:
        paramwise_cfg.pop('custom_keys', None)
    if not paramwise_cfg:
        optim_wrapper.pop('paramwise_cfg', None)
    return cfg
