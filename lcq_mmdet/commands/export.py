"""Write a trained low-bit detector to a packed file or an ONNX graph."""
import argparse

from mmengine.config import Config
from mmengine.utils import track_iter_progress

from lcq_mmdet.cli import check_files, load_config
from lcq_mmdet.export import (export_packed, float_bytes, load_quantized,
                              size_table, training_images)
from lcq_mmdet.export.engines import ENGINES


def main(args: argparse.Namespace) -> None:
    cfg = load_config(args)
    if args.int8:
        # What the training started from is not needed any more.
        check_files(
            Config(dict(cfg, load_from=None)), ('train_dataloader', ))
    model, meta = load_quantized(cfg, args.checkpoint)
    meta = {key: meta[key] for key in ('dataset_meta', ) if key in meta}
    if args.out.endswith('.onnx'):
        from lcq_mmdet.export.end2end import export_end2end
        from lcq_mmdet.export.graphs import export_onnx
        export = (export_end2end if args.end2end else export_onnx)(
            model,
            args.out,
            cfg if args.end2end else cfg.to_dict(),
            meta,
            progress=track_iter_progress,
            int8=args.int8,
            images=training_images(cfg, model) if args.int8 else (),
            keep_float=args.keep_float,
            engine=args.engine or ENGINES[0])
        print(f'\nwritten: {args.out}, {export.size / 1e6:.3f} MB, '
              f'{export.size / float_bytes(model):.3f} of the float model')
        if args.int8:
            print(f'{export.integer_share:.1%} of the multiply-accumulates '
                  'are in 8-bit integers')
        for name, why in export.left_float.items():
            print(f'in float: {name}: {why}')
        return
    sizes = export_packed(
        model,
        args.out,
        cfg.to_dict(),
        meta,
        half=args.half,
        progress=track_iter_progress)
    print(f'\n{size_table(sizes)}\n'
          f'written: {args.out}, {sizes.ratio:.3f} of the float model, '
          f'overhead {sizes.overhead:.2%}')
