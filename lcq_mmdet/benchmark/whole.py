"""From an image to its boxes: torch with mmdet, and graphs by themselves."""
import copy
import os.path as osp
from functools import partial
from itertools import product
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, List, Sequence

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

from lcq_mmdet.conversion.building import build_model
from lcq_mmdet.conversion.model import float_config
from lcq_mmdet.export.end2end import export_end2end
from lcq_mmdet.export.evaluation import with_graph
from lcq_mmdet.export.source import load_quantized, training_images

from .engines import (ARITHMETIC, TITLES, TORCH, TORCH_FLOAT, engine_rows,
                      test_metrics)
from .timing import interleaved_medians

# Options of export_end2end by name of the row.
_KINDS: Dict[str, Dict[str, Any]] = {
    **{kind: dict(int8=int8) for kind, int8 in ARITHMETIC.items()},
    'LCQ in 8 bits, relaxed, other layers in float':
    dict(int8='relaxed', keep_float=['*']),
}


def whole_rows(case: str, cfg: Config, rounds: int,
               engines: Sequence[str]) -> List[Dict[str, Any]]:
    """Measure and evaluate a trained detector from images to boxes.

    What is timed begins with the first test image, loaded and resized, and
    ends with its boxes. The float detector beside it has the same weights,
    not quantized.

    Args:
        case: What the detector is called.
        cfg: Config of a quantized detector, whose ``load_from`` is a
            checkpoint of its training.
        rounds: Timed calls of each.
        engines: What runs the graphs; names of ``ENGINES``, installed.

    Raises:
        LCQError: If the checkpoint does not fit, or the detector cannot be
            in a graph.
    """
    model, meta = load_quantized(cfg, cfg.load_from)
    plain = build_model(float_config(cfg)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    image = _first_image(cfg)
    calls: Dict[str, Callable[[], Any]] = {
        TORCH_FLOAT: partial(_detect, plain, image),
        TORCH: partial(_detect, model, image)
    }
    configs, file_bytes = {TORCH: cfg}, {}
    images = list(training_images(cfg, model))
    with TemporaryDirectory() as folder:
        for engine, (kind, options) in product(engines, _KINDS.items()):
            name = f'{TITLES[engine]}, {kind}'
            path = osp.join(folder, f'{len(calls)}.onnx')
            export_end2end(model, path, cfg, meta, images=images,
                           engine=engine, **options)
            file_bytes[name] = osp.getsize(path)
            configs[name] = graph_cfg = with_graph(cfg, path, engine)
            calls[name] = partial(_detect, build_model(graph_cfg),
                                  _first_image(graph_cfg))
        seconds = interleaved_medians(calls, rounds)
        metrics = {
            name: test_metrics(graph_cfg, folder)
            for name, graph_cfg in configs.items()
        }
    return engine_rows(f'{case}, images to boxes', 'images to boxes', seconds,
                       file_bytes, metrics)


def _first_image(cfg: Config) -> Any:
    dataset = DATASETS.build(copy.deepcopy(cfg.test_dataloader.dataset))
    return pseudo_collate([dataset[0]])


@torch.no_grad()
def _detect(model: Any, image: Any) -> Any:
    return model.test_step(copy.deepcopy(image))
