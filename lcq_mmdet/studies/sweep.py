"""A float detector at several bit-widths: calibrated, fine-tuned, evaluated.

A row of the sweep has a folder of its own in the work directory.
"""
import json
import os.path as osp
import time
import traceback
from typing import (Any, Dict, Iterable, Iterator, List, Mapping, Optional,
                    Sequence, Set)

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from lcq_mmdet.conversion.model import apply_lcq, float_config
from lcq_mmdet.errors import LCQError
from lcq_mmdet.hooks import keep_teacher
from lcq_mmdet.quantization.config import QUANTIZERS
from lcq_mmdet.report.records import to_json
from lcq_mmdet.report.runs import (evaluate, latest_checkpoint, load_run,
                                   mixed_bits)

from .claim import claim_work_dir
from .measuring import measure_step, train_row
from .outcomes import Outcomes
from .rows import Row

#: Variants of a sweep that compares quantizers.
VARIANTS = {name: {'model.quantizer': name} for name in QUANTIZERS}
# The config may have one for the others.
VARIANTS['lsq']['model.weight_norm'] = 'none'
#: Seconds between looks at rows that other processes have.
_PAUSE = 5.


class Sweep:
    """Run the rows of a sweep that are not done yet.

    Other processes may run the same sweep in the same work directory. Each
    takes rows that are not done and that nobody has; one that was killed has
    none.

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
        self._elsewhere: Set[Row] = set()
        claim_work_dir(cfg, work_dir, 'sweep', progressive=progressive)
        self._outcomes = Outcomes([self.path(row) for row in rows])

    def run(self) -> Iterator[List[Dict[str, Any]]]:
        """Run row after row; after each, yield the records of all so far.

        They are in the order of the rows, and the float detector's is among
        them. Rows that other processes have are waited for in the end.

        A row that fails has an ``error`` in place of its results, and is run
        again by the next sweep.

        Raises:
            LCQError: If the float detector cannot be evaluated.
        """
        records: Dict[Row, Dict[str, Any]] = {}
        while len(records) < len(self.rows):
            known = len(records)
            for row in self.rows:
                if row in records or self._is_too_early(row, records):
                    continue
                record = self._take(row)
                if record is None:
                    continue
                records[row] = record
                if self.rows[0] in records:
                    yield [records[r] for r in self.rows if r in records]
            if len(records) == known:
                time.sleep(_PAUSE)

    @property
    def is_shared(self) -> bool:
        """Whether other processes were seen to run rows."""
        return bool(self._elsewhere)

    def path(self, row: Row) -> str:
        """Return the row's folder."""
        return osp.join(self.work_dir, row.folder)

    def _take(self, row: Row) -> Optional[Dict[str, Any]]:
        """Return the row's record, ``None`` while another process runs it."""
        record = self._read(row)
        if record is not None:
            return record
        with self._outcomes.held(self.path(row)) as is_held:
            if is_held:
                # It may have been done in between.
                return self._read(row) or self._run_row(row)
        if row not in self._elsewhere:
            print_log(f'LCQ sweep: another process runs {row.folder}',
                      'current')
        self._elsewhere.add(row)
        return None

    def _read(self, row: Row) -> Optional[Dict[str, Any]]:
        record = self._outcomes.read(self.path(row))
        options = json.loads(to_json(self._label(row)))['options']
        if record is not None and record['options'] != options:
            raise LCQError(
                f'--variant {row.variant}: {self.path(row)} was made with '
                f'{record["options"]}; choose another name')
        return record

    def _label(self, row: Row) -> Dict[str, Any]:
        return dict(
            row.label(), options=dict(self.variants.get(row.variant, {})))

    def _run_row(self, row: Row) -> Dict[str, Any]:
        print_log(
            f'LCQ sweep: row {self.rows.index(row) + 1} of {len(self.rows)}, '
            f'{row.name} {row.bits_text if not row.is_float else ""}',
            'current')
        label = self._label(row)
        try:
            label.update(mixed_bits(self._model_config(row)))
            record = {**self._measure(row), **label}
        except Exception as error:
            if row.is_start:
                raise
            print_log(traceback.format_exc(), 'current')
            text = (str(error).splitlines() or [''])[0]
            record = dict(label, error=f'{type(error).__name__}: {text}')
        self._outcomes.write(self.path(row), record)
        return record

    def _measure(self, row: Row) -> Dict[str, Any]:
        cfg = self.row_config(row)
        if row.is_start:
            step = measure_step(cfg)
        elif row.seed is not None:
            step = train_row(cfg)
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
            start = self._start(row)
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
        keep_teacher(cfg)
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
        configs = {'float': self.row_config(self.rows[0])}
        for bits in sorted(rows, reverse=True)[-most:]:
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

    def _before(self, row: Row) -> Optional[Row]:
        """Find the row of the next higher bit-width, if it starts there."""
        if not self.progressive or row.is_float or row.seed is None:
            return None
        before = [
            other for other in self.rows[:self.rows.index(row)]
            if (other.variant, other.seed) == (row.variant, row.seed)
        ]
        return before[-1] if before else None

    def _is_too_early(self, row: Row, records: Iterable[Row]) -> bool:
        return self._before(row) not in (None, *records)

    def _start(self, row: Row) -> Optional[str]:
        """Find the checkpoint that a row starts from, if it is another's."""
        before = self._before(row)
        if before is None:
            return None
        if 'error' in (self._read(before) or {'error': None}):
            raise LCQError(f'starts from {before.folder}, which failed')
        path = latest_checkpoint(self.path(before))
        if path is None:
            raise LCQError(f'starts from {before.folder}, which has no '
                           'checkpoint any more')
        return path
