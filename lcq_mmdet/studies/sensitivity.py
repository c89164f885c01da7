"""What is lost when one layer alone is quantized."""
import copy
import json
import os.path as osp
import time
from functools import cached_property
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch.nn.modules.batchnorm import _BatchNorm

from lcq_mmdet.conversion.model import apply_lcq, float_config
from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.calibration import (fixed_random_state,
                                                sample_batches)
from lcq_mmdet.quantization.layers import QuantizedLayer, lcq_layers
from lcq_mmdet.report.cost import cost, count_macs, layer_bops, layer_bytes
from lcq_mmdet.report.records import to_json, write_text
from lcq_mmdet.report.runs import (average_precision, evaluate,
                                   forward_test_images)

from .assign import both_bits
from .claim import claim_work_dir, read_json

CRITERIA = ('loss', 'mAP')
#: Costs that a budget limits, of :class:`~lcq_mmdet.report.cost.Cost`.
COSTS = ('bytes', 'bops')
Row = Dict[str, Any]
Overrides = Mapping[str, Mapping[str, Any]]
_SEED = 0


class Sensitivity:
    """Quantize layer after layer, each alone, without training.

    What is measured is kept in the work directory and not measured again.

    Args:
        cfg: Config of a float or quantized detector whose ``load_from`` is
            the float checkpoint.
        criterion: ``'loss'``, on training batches, or ``'mAP'`` on the test
            data, which takes longer.
        num_batches: Training batches for the loss, 1 or more.

    Raises:
        LCQError: If the work directory belongs to another config, or
            ``num_batches`` is not positive.
    """

    def __init__(self, cfg: Config, criterion: str, num_batches: int) -> None:
        if num_batches < 1:
            raise LCQError(f'num_batches={num_batches!r}: must be 1 or more')
        self.cfg = apply_lcq(cfg, bits=8)
        self.criterion, self.num_batches = criterion, num_batches
        claim_work_dir(
            self.cfg,
            cfg.work_dir,
            'sensitivity',
            criterion=criterion,
            num_batches=num_batches)
        self._file = osp.join(cfg.work_dir, 'values.json')
        self._values: Dict[str, Any] = read_json(self._file) or {}

    def layers(self, bits: int) -> Tuple[List[Row], Dict[str, float]]:
        """Measure each layer at one bit-width.

        Args:
            bits: Bits of weight and input, 2 to 8.

        Returns:
            Rows with ``layer``, ``bits``, ``change``, what is lost when this
            layer alone is quantized (loss above the float detector's, or AP
            below it), and its own cost, ``bytes`` and ``bops`` an image; and
            what all that is not quantized costs.
        """
        opened = self._open(bits)
        missing = [
            name for name in opened.layers
            if f'{name} {bits}' not in self._values
        ]
        bar = None
        if missing and is_main_process():
            print(f'{bits} bits, {len(missing)} of {len(opened.layers)} '
                  'layers')
            bar = ProgressBar(len(missing))
        rows: List[Row] = []
        for name, layer in opened.layers.items():
            value = self._measure(f'{name} {bits}', opened, [name])
            if bar and name in missing:
                bar.update()
            rows.append(
                dict(
                    layer=name,
                    bits=bits,
                    change=self._change(value, opened),
                    bytes=layer_bytes(layer),
                    bops=layer_bops(layer, opened.macs[name]) /
                    opened.num_images))
        if bar:
            bar.file.write('\n')
        total = opened.cost()
        return rows, {
            key: total[key] - sum(row[key] for row in rows)
            for key in COSTS
        }

    def cost(self, bits: int, everywhere: bool = True) -> Dict[str, float]:
        """Compute what a detector costs; nothing is calibrated or measured.

        Args:
            bits: Bits of weight and input, 2 to 8.
            everywhere: Whether all layers have them, also those for which
                the config sets others.
        """
        return self._open(bits, everywhere, is_calibrated=False).cost()

    def _open(self, bits: int, everywhere: bool = True,
              is_calibrated: bool = True) -> '_Opened':
        overrides = {'*': both_bits(bits)} if everywhere else {}
        return _Opened(
            self._config(bits, overrides), self.num_batches, is_calibrated)

    def evaluate(self,
                 name: str,
                 bits: Optional[int] = None,
                 overrides: Optional[Overrides] = None) -> Row:
        """Evaluate a detector on the test data, calibrated and not trained.

        Args:
            name: What to call it.
            bits: Bits of weight and input, 2 to 8; ``None`` for float.
            overrides: Settings by pattern, after those of the config.

        Returns:
            What :func:`~lcq_mmdet.report.tables.map_table` takes.
        """
        key = json.dumps(dict(bits=bits, overrides=overrides or {}))
        if key not in self._values:
            cfg = (
                _named(float_config(self.cfg))
                if bits is None else self._config(bits, overrides or {}))
            self._keep(key, evaluate(cfg).record())
        record = dict(self._values[key], name=name)
        if overrides:
            record['overrides'] = overrides
        return record

    def _config(self, bits: int, overrides: Overrides) -> Config:
        # A pattern that is there already would keep its place before others.
        before = self.cfg.model.get('overrides') or {}
        own = {
            pattern: settings
            for pattern, settings in before.items() if pattern not in overrides
        }
        for pattern, settings in overrides.items():
            own[pattern] = {**before.get(pattern, {}), **settings}
        return _named(apply_lcq(self.cfg, bits=bits, overrides=own))

    def _change(self, value: float, opened: '_Opened') -> float:
        change = value - self._measure('float', opened, [])
        return change if self.criterion == 'loss' else -change

    def _measure(self, key: str, opened: '_Opened',
                 quantized: Sequence[str]) -> float:
        if key not in self._values:
            opened.quantize_only(quantized)
            self._keep(key, opened.loss() if self.criterion == 'loss' else
                       opened.average_precision())
        value: float = self._values[key]
        return value

    def _keep(self, key: str, value: Any) -> None:
        self._values[key] = value
        if is_main_process():
            write_text(self._file, to_json(self._values))


def _named(cfg: Config) -> Config:
    """Name a run of its own: mmengine keeps runners, visualizers by name."""
    cfg.experiment_name = f'sensitivity{time.time_ns()}'
    cfg.visualizer = None
    cfg.work_dir = osp.join(cfg.work_dir, 'logs')
    return cfg


class _Opened:
    """A detector whose layers are quantized one by one, once calibrated."""

    def __init__(self,
                 cfg: Config,
                 num_batches: int,
                 is_calibrated: bool = True) -> None:
        self._num_batches = num_batches
        self.runner = Runner.from_cfg(cfg)
        self.runner.call_hook('before_run')
        self.runner.load_or_resume()
        self.model: Any = unwrap(self.runner.model)
        self.layers: Dict[str, QuantizedLayer] = dict(lcq_layers(self.model))
        if is_calibrated:
            # Values are filled in that the checkpoint has not.
            self.runner.call_hook('before_test')
        else:
            self.quantize_only([])
        self.model.eval()
        with count_macs(self.model) as self.macs:
            self.num_images = forward_test_images(self.runner)

    def cost(self) -> Dict[str, float]:
        return cost(self.model, self.macs, self.num_images)._asdict()

    def quantize_only(self, names: Sequence[str]) -> None:
        for name, layer in self.layers.items():
            for _, quantizer in layer.quantizers():
                quantizer.bypass = name not in names

    @cached_property
    def _batches(self) -> List[Any]:
        with fixed_random_state(_SEED):
            return [
                self.model.data_preprocessor(batch, False)
                for batch in sample_batches(self.runner.train_dataloader,
                                            self._num_batches)
            ]

    @torch.no_grad()
    def loss(self) -> float:
        # Some heads give in training alone what their losses take.
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        losses = []
        for batch in self._batches:
            # Samplers of proposals draw the same each time.
            with fixed_random_state(_SEED):
                loss = self.model._run_forward(
                    copy.deepcopy(batch), mode='loss')
            losses.append(float(self.model.parse_losses(loss)[0]))
        return sum(losses) / len(losses)

    def average_precision(self) -> float:
        metrics = average_precision(self.runner)
        if 'mAP' not in metrics:
            raise LCQError('--criterion=mAP: test_evaluator gives no bbox_mAP')
        return metrics['mAP']
