"""A graph in the place of a detector."""
from mmengine.config import Config

from lcq_mmdet.conversion.model import float_config

from .engines import ENGINES


def with_graph(cfg: Config, path: str, engine: str = ENGINES[0]) -> Config:
    """Put a graph in the place of the model.

    Args:
        cfg: Config of the quantized detector that was exported.
        path: The graph's file, of the network alone or from images to boxes.
        engine: What runs it; a name of ``ENGINES``.

    Returns:
        A config that loads no checkpoint and leaves to the graph what it
        does by itself.

    Raises:
        LCQError: If the file cannot be read or is of another version.
    """
    # What needs onnx.
    from .end2end import leave_padding_to_graph
    from .graphs.metadata import is_self_contained, read_graph
    model = dict(path=path, config=cfg.model.to_dict(), engine=engine)
    cfg = float_config(cfg)
    cfg.load_from = None
    if is_self_contained(read_graph(path)):
        leave_padding_to_graph(cfg)
        cfg.model = dict(type='EndToEndDetector', **model)
    else:
        cfg.model = dict(type='GraphDetector', detector=cfg.model, **model)
    return cfg
