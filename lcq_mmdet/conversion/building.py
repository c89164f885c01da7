"""Building the model of a config, and giving it random weights."""
import logging
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope

# Keys by which a model fetches weights while it is built or initialized.
_WEIGHTS = ('init_cfg', 'pretrained', 'teacher_ckpt')


def build_model(cfg: Config) -> Any:
    """Build the model of a config as its runner would."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with MODELS.switch_scope_and_registry(None) as registry:
        return registry.build(cfg.model)


def without_weights(cfg: Any) -> Any:
    """Copy a model's config without what would be downloaded."""
    if isinstance(cfg, dict):
        copied = type(cfg)()
        for key, value in cfg.items():
            copied[key] = None if key in _WEIGHTS else without_weights(value)
        return copied
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(map(without_weights, cfg))
    return cfg


def init_weights_(model: Any) -> None:
    """Give a model random weights without mmengine's line for each of them."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)
