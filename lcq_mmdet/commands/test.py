"""Evaluate a detector; with --bits, a float checkpoint is quantized first."""
import argparse
import copy
import os.path as osp

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config

from lcq_mmdet.cli import (add_runner_arguments, build_runner, check_files,
                           load_config)
from lcq_mmdet.conversion.model import float_config
from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.errors import LCQError
from lcq_mmdet.export.engines import ENGINES, check_engine
from lcq_mmdet.quantization.layers import lcq_layers

EXPORTED = ('.onnx', '.safetensors')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config, or mmdet::...')
    parser.add_argument(
        'checkpoint', help='checkpoint: float, quantized or packed; '
        'or a graph (.onnx)')
    add_runner_arguments(parser)
    parser.add_argument(
        '--engine',
        choices=ENGINES,
        help='what runs a graph (default: onnxruntime)')
    parser.add_argument(
        '--out', help='also write the predictions to this .pkl file')
    parser.add_argument(
        '--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir', help='write painted images to this folder of the run')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds that --show shows an image')
    parser.add_argument(
        '--tta', action='store_true', help='use test time augmentation')
    return parser.parse_args()


def use_test_time_augmentation(cfg: Config) -> None:
    """Wrap the model as ``tta_model`` says, flipping images by default."""
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(
            type='DetTTAModel',
            tta_cfg=dict(
                nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_pipeline' not in cfg:
        pack = copy.deepcopy(dataset.pipeline[-1])
        pack.meta_keys = (*pack.get('meta_keys', ()), 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1., 0.)]
        cfg.tta_pipeline = [
            *dataset.pipeline[:-1],
            dict(type='TestTimeAug', transforms=[flips, [pack]])
        ]
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def with_graph(cfg: Config, path: str, engine: str) -> Config:
    """Put a graph in the place of the model."""
    from lcq_mmdet.export.end2end import leave_padding_to_graph
    from lcq_mmdet.export.graphs.metadata import is_self_contained, read_graph
    config = cfg.model.to_dict()
    cfg = float_config(cfg)
    cfg.load_from = None
    if is_self_contained(read_graph(path)):
        leave_padding_to_graph(cfg)
        cfg.model = dict(
            type='EndToEndDetector', path=path, config=config, engine=engine)
    else:
        cfg.model = dict(
            type='GraphDetector',
            detector=cfg.model,
            path=path,
            config=config,
            engine=engine)
    return cfg


def main() -> None:
    args = parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise LCQError(f'--out={args.out!r}: must end in .pkl or .pickle')
    is_graph = args.checkpoint.endswith('.onnx')
    if args.engine:
        if not is_graph:
            raise LCQError(f'--engine={args.engine!r}: is for graphs (.onnx), '
                           f'and checkpoint={args.checkpoint!r} is none')
        check_engine(args.engine)
    setup_cache_size_limit_of_dynamo()
    cfg = load_config(args)
    if (args.checkpoint.endswith(EXPORTED)
            and not osp.isfile(args.checkpoint)):
        raise LCQError(f'checkpoint={args.checkpoint!r}: no such file; '
                       'tools/export.py writes it')
    cfg.load_from = args.checkpoint
    check_files(cfg, ('test_dataloader', ))
    if is_graph:
        cfg = with_graph(cfg, args.checkpoint, args.engine or ENGINES[0])
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        use_test_time_augmentation(cfg)
    runner = build_runner(cfg)
    if (args.checkpoint.endswith('.safetensors')
            and not any(lcq_layers(unwrap(runner.model)))):
        raise LCQError(f'config={args.config!r}: is of a float model, and the '
                       'checkpoint is a packed one; give the config that it '
                       'was exported with')
    if args.out:
        runner.test_evaluator.metrics.append(
            DumpDetResults(out_file_path=args.out))
    runner.test()
