"""Building the model of a config, and giving it random weights."""
import logging
from contextlib import contextmanager
from typing import Any, Iterator

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
    with without_log():
        model.init_weights()


@contextmanager
def without_log() -> Iterator[None]:
    """Log nothing but errors inside, unless the log level is DEBUG."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    # Its handlers have the log level; its own lets all pass.
    if all(h.level != logging.DEBUG for h in logger.handlers):
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
