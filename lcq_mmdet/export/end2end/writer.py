"""From a trained quantized detector to a file that detects by itself."""
import os.path as osp
from tempfile import TemporaryDirectory
from typing import Any, Mapping

import onnx
import torch
from mmengine.config import Config
from torch import nn

from lcq_mmdet.report.files import replacing

from ..files import to_literal
from ..graphs.heads import dense_head
from ..graphs.metadata import DETECTOR, write_metadata
from ..graphs.writer import Export, export_onnx
from .assembly import Assembly
from .check import check_boxes
from .metadata import dataset_meta, describe
from .preprocessing import find_test_data, read_pipeline, resize_metadata


@torch.no_grad()
def export_end2end(model: nn.Module, path: str, cfg: Config,
                   meta: Mapping[str, Any] = {}, **options: Any) -> Export:
    """Write a graph from images to boxes.

    The file is written under another name, read again and compared with
    mmdet; only then does it replace what is at ``path``.

    Args:
        model: A converted detector with trained or calibrated quantizers,
            not wrapped, in eval mode; it is not changed.
        path: Where the file goes; ends in ``.onnx``.
        cfg: The full config.
        meta: What else a checkpoint's ``meta`` has: plain data.
        **options: Those of :func:`export_onnx`.

    Raises:
        LCQError: If a part of the detector cannot be in a graph, or the file
            cannot be written or finds something else; what is at ``path`` is
            as it was.
    """
    dataset = find_test_data(cfg)
    pipeline = read_pipeline(dataset.get('pipeline') or [])
    resize = resize_metadata(pipeline)
    assembly = Assembly(model, pipeline)
    config = cfg.to_dict()
    names = dataset_meta(dataset, meta, _num_classes(model))
    about = describe(names['classes'], names.get('palette'), resize,
                     options.get('int8') or 'float', assembly.score_thr,
                     assembly.suppression)
    with TemporaryDirectory() as folder:
        network = osp.join(folder, 'network.onnx')
        export = export_onnx(model, network, config, meta, **options)
        graph = assembly.assemble(onnx.load(network))
        write_metadata(graph, to_literal(config), to_literal(meta),
                       **{DETECTOR: about})
        with replacing(path) as temporary:
            onnx.save(graph, temporary)
            written = onnx.load(temporary)
            onnx.checker.check_model(written, full_check=True)
            check_boxes(written, network, model, config['model'], pipeline)
            size = osp.getsize(temporary)
    return export._replace(size=size)


def _num_classes(model: Any) -> int:
    roi_head = getattr(model, 'roi_head', None)
    return (roi_head.bbox_head if roi_head else dense_head(model)).num_classes
