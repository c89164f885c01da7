"""A float detector at several bit-widths: calibrated, fine-tuned, evaluated.

A row of the sweep has a folder of its own in the work directory, and is done
when there is a ``row.json`` in it.
"""
import json
import os.path as osp
import traceback
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

import numpy as np
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.utils import mkdir_or_exist

from lcq_mmdet.benchmark.memory import peak_memory
from lcq_mmdet.conversion.building import build_model
from lcq_mmdet.conversion.checkpoint import (match_keys, packed_layers,
                                             read_checkpoint)
from lcq_mmdet.conversion.model import apply_lcq, float_config
from lcq_mmdet.errors import LCQError, some
from lcq_mmdet.quantization.config import QUANTIZERS
from lcq_mmdet.report.records import to_json, write_text
from lcq_mmdet.report.runs import evaluate, load_run, mixed_bits

from .claim import claim_work_dir, read_json
from .rows import Row

#: Variants of a sweep that compares quantizers.
VARIANTS = {name: {'model.quantizer': name} for name in QUANTIZERS}
_FLOAT_ITERS = 30


def check_float(cfg: Config) -> None:
    """Check that ``load_from`` is a checkpoint of the float detector.

    Raises:
        LCQError: If it is not set, cannot be read, or lacks keys.
    """
    path = cfg.get('load_from')
    if not path:
        raise LCQError(
            'load_from: a sweep starts from a trained float detector; name '
            'its checkpoint with --cfg-options load_from=...')
    model = build_model(float_config(cfg))
    checkpoint = read_checkpoint(path, 'load_from')
    if packed_layers(checkpoint):
        raise LCQError(f'load_from={path!r}: is a packed checkpoint, which '
                       'has no float weights')
    missing = match_keys(model, checkpoint).missing
    if missing:
        raise LCQError(
            f'load_from={path!r}: is not of this detector, it has not, or '
            f'not in the same shape, {some(missing)} keys')


class Sweep:
    """Run the rows of a sweep that are not done yet.

    Args:
        cfg: Config of a float or quantized detector whose ``load_from`` is
            the float checkpoint.
        rows: What :func:`~lcq_mmdet.studies.rows.plan` lists.
        work_dir: Where rows and report go.
        progressive: Whether to start each fine-tuning from the next higher
            bit-width's result, and not from the float detector. Its clips
            and companders are kept as they are, not calibrated anew.
        variants: What each variant changes in the config, by its name: values
            by dotted keys, as ``--cfg-options`` has them.

    Raises:
        LCQError: If the work directory belongs to another sweep.
    """

    def __init__(self,
                 cfg: Config,
                 rows: Sequence[Row],
                 work_dir: str,
                 progressive: bool = False,
                 variants: Mapping[str, Mapping[str, Any]] = VARIANTS) -> None:
        self.cfg, self.rows, self.work_dir = cfg, rows, work_dir
        self.variants = variants
        self.progressive = progressive
        claim_work_dir(cfg, work_dir, 'sweep', progressive=progressive)

    def run(self) -> Iterator[List[Dict[str, Any]]]:
        """Run row after row; after each, yield the records of all so far.

        A row that fails has an ``error`` in place of its results, and is run
        again by the next sweep.

        Raises:
            LCQError: If the float detector cannot be evaluated.
        """
        records: List[Dict[str, Any]] = []
        for index, row in enumerate(self.rows):
            print_log(
                f'LCQ sweep: row {index + 1} of {len(self.rows)}, {row.name} '
                f'{row.bits_text if not row.is_float else ""}', 'current')
            records.append(self._run_row(row))
            yield records

    def path(self, row: Row) -> str:
        """Return the row's folder."""
        return osp.join(self.work_dir, row.folder)

    def _run_row(self, row: Row) -> Dict[str, Any]:
        file = osp.join(self.path(row), 'row.json')
        label = row.label()
        label['options'] = dict(self.variants.get(row.variant, {}))
        done = read_json(file)
        if done:
            if done['options'] != json.loads(to_json(label))['options']:
                raise LCQError(
                    f'--variant {row.variant}: {self.path(row)} was made with '
                    f'{done["options"]}; choose another name')
            return done
        mkdir_or_exist(self.path(row))
        try:
            label.update(mixed_bits(self._model_config(row)))
            result = self._measure(row)
        except Exception as error:
            if row.is_start:
                raise
            print_log(traceback.format_exc(), 'current')
            text = (str(error).splitlines() or [''])[0]
            return dict(label, error=f'{type(error).__name__}: {text}')
        record = {**result, **label}
        if is_main_process():
            write_text(file, to_json(record))
        barrier()
        return record

    def _measure(self, row: Row) -> Dict[str, Any]:
        cfg = self.row_config(row)
        if row.is_start:
            step = _measure_step(cfg)
        elif row.seed is not None:
            step = _train(cfg)
            cfg = load_run(cfg.work_dir, cfg.get('launcher', 'none'))
        else:
            step = {}
        return {**evaluate(cfg).record(), **step}

    def row_config(self, row: Row) -> Config:
        """Make the config that a row runs with."""
        cfg = self._model_config(row)
        cfg.work_dir = self.path(row)
        cfg.experiment_name = row.folder
        # Under one name, all rows would log to the folder of the first.
        if 'visualizer' in cfg:
            cfg.visualizer.name = row.folder
        if row.seed is not None:
            cfg.randomness = dict(cfg.get('randomness', {}), seed=row.seed)
            quantized = self.progressive and not row.is_float
            start = self._start(row) if quantized else None
            if start:
                cfg.load_from = start
                cfg.default_hooks.lcq.keep_quantizers = True
                print_log(f'LCQ sweep: {row.folder} starts from {start} and '
                          'keeps its quantizers', 'current')
        return cfg

    def _model_config(self, row: Row) -> Config:
        if row.is_float:
            return float_config(self.cfg)
        weight_bits, act_bits = row.bits
        cfg = apply_lcq(
            self.cfg, bits=None, weight_bits=weight_bits, act_bits=act_bits)
        cfg.merge_from_dict(dict(self.variants[row.variant]))
        return cfg

    def fine_tuned_runs(self, records: Sequence[Dict[str, Any]],
                        most: int = 3) -> Dict[str, Runner]:
        """Open the float detector and the lowest bit-widths beside it.

        They are of the first variant there is a result of.

        Args:
            records: What :meth:`run` yielded last.
            most: Number of bit-widths.

        Returns:
            Runners with their checkpoints loaded, by the name to show.
        """
        done = [
            row for row, record in zip(self.rows, records)
            if row.seed is not None and not row.is_float
            and 'error' not in record
        ]
        rows = {
            row.bits: row
            for row in reversed(done) if row.variant == done[0].variant
        }
        lowest = sorted(rows, reverse=True)[-most:]
        configs = {'float': self.row_config(self.rows[0])}
        for bits in lowest:
            row = rows[bits]
            text = records[self.rows.index(row)]['bits']
            configs[f'{row.variant} {text}'] = load_run(
                self.path(row), self.cfg.get('launcher', 'none'))
        runners = {}
        for name, cfg in configs.items():
            runners[name] = Runner.from_cfg(cfg)
            runners[name].load_or_resume()
            runners[name].model.eval()
        return runners

    def _start(self, row: Row) -> Optional[str]:
        """Find the checkpoint of the next higher bit-width."""
        before = [
            other for other in self.rows[:self.rows.index(row)]
            if (other.variant, other.seed) == (row.variant, row.seed)
        ]
        if not before:
            return None
        if not read_json(osp.join(self.path(before[-1]), 'row.json')):
            raise LCQError(f'starts from {before[-1].folder}, which failed')
        return find_latest_checkpoint(self.path(before[-1]))


def _train(cfg: Config) -> Dict[str, Any]:
    checkpoint = find_latest_checkpoint(cfg.work_dir)
    # mmengine removes an old one first, and the disk may be full then.
    if checkpoint and not osp.isfile(checkpoint):
        checkpoint = None
    if checkpoint:
        cfg.resume, cfg.load_from = True, checkpoint
    result = _measure_training(cfg)
    if checkpoint and checkpoint == find_latest_checkpoint(cfg.work_dir):
        result['peak_memory'] = None  # There was nothing left to train.
    return result


def _measure_step(cfg: Config) -> Dict[str, Any]:
    """Train the float detector a little, for time and memory of a step."""
    cfg = Config(cfg.to_dict())
    cfg.work_dir = osp.join(cfg.work_dir, 'step')
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=_FLOAT_ITERS)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.param_scheduler = None
    cfg.default_hooks = dict(cfg.get('default_hooks', {}), checkpoint=None)
    return _measure_training(cfg)


def _measure_training(cfg: Config) -> Dict[str, Any]:
    with peak_memory() as peak:
        runner = Runner.from_cfg(cfg)
        runner.train()
    times, _ = runner.message_hub.get_scalar('train/time').data
    return dict(
        seconds_per_iter=float(np.median(times)), peak_memory=peak[0])
