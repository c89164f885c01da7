"""Evaluate a detector; with --bits, a float checkpoint is quantized first."""
import argparse
import copy
from typing import Any, Dict, List, Sequence

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config

from lcq_mmdet.cli import build_runner, check_files, load_config
from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.datasets.configs import innermost
from lcq_mmdet.errors import LCQError
from lcq_mmdet.export.engines import ENGINES, check_engine
from lcq_mmdet.export.evaluation import with_graph
from lcq_mmdet.quantization.layers import lcq_layers


def use_test_time_augmentation(cfg: Config) -> None:
    """Wrap the model as ``tta_model`` says, flipping images by default."""
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(
            type='DetTTAModel',
            tta_cfg=dict(
                nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    for _, dataset in innermost('test_dataloader', cfg.test_dataloader):
        dataset['pipeline'] = (
            cfg.get('tta_pipeline') or _with_flips(dataset['pipeline']))
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def _with_flips(pipeline: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Let a test pipeline give each image flipped and as it is."""
    *before, pack = copy.deepcopy(pipeline)
    pack['meta_keys'] = (*pack.get('meta_keys', ()), 'flip', 'flip_direction')
    flips = [dict(type='RandomFlip', prob=prob) for prob in (1., 0.)]
    return [*before, dict(type='TestTimeAug', transforms=[flips, [pack]])]


def main(args: argparse.Namespace) -> None:
    is_graph = args.checkpoint.endswith('.onnx')
    if args.engine:
        check_engine(args.engine)
    setup_cache_size_limit_of_dynamo()
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    check_files(cfg, ('test_dataloader', ))
    if is_graph:
        cfg = with_graph(cfg, args.checkpoint, args.engine or ENGINES[0])
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        use_test_time_augmentation(cfg)
    runner = build_runner(cfg, test_only=True)
    if (args.checkpoint.endswith('.safetensors')
            and not any(lcq_layers(unwrap(runner.model)))):
        raise LCQError(f'config={args.config!r}: is of a float model, and the '
                       'checkpoint is a packed one; give the config that it '
                       'was exported with')
    if args.out:
        runner.test_evaluator.metrics.append(
            DumpDetResults(out_file_path=args.out))
    runner.test()
