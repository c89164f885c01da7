"""Trained runs: found in their work directories, evaluated, recorded."""
import json
import os
import os.path as osp
import subprocess
import sys
from typing import Any, Dict, List, NamedTuple

from mmengine.config import Config
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.utils.dl_utils import collect_env
from torch import nn

import lcq_mmdet
from lcq_mmdet.convert import lcq_layers
from lcq_mmdet.errors import LCQError


class Evaluation(NamedTuple):
    """One evaluated run.

    Attributes:
        name: Name of the work directory.
        bits: Bits of weights and inputs, ``'4/4'`` where most layers have 4,
            or ``'float'``.
        metrics: AP values in [0, 1] by the names of ``CocoMetric``.
        seed: Seed of the run's config, if it has one.
        runner: The runner that evaluated, with its model and data.
    """
    name: str
    bits: str
    metrics: Dict[str, float]
    seed: Any
    runner: Runner

    def record(self) -> Dict[str, Any]:
        """Return what is worth keeping, as plain data."""
        return {
            key: value
            for key, value in self._asdict().items() if key != 'runner'
        }


def load_run(work_dir: str) -> Config:
    """Read the config of a work directory, set to its latest checkpoint.

    Raises:
        LCQError: If there is no config or no checkpoint.
    """
    configs = sorted(name for name in (
        os.listdir(work_dir) if osp.isdir(work_dir) else ())
                     if name.endswith('.py'))
    if not configs:
        raise LCQError(f'{work_dir}: there is no config in this work '
                       'directory; train first')
    cfg = Config.fromfile(osp.join(work_dir, configs[-1]))
    cfg.load_from = find_latest_checkpoint(work_dir)
    if cfg.load_from is None:
        raise LCQError(f'{work_dir}: there is no checkpoint in this work '
                       'directory; train first')
    cfg.work_dir = work_dir
    cfg.resume = False
    return cfg


def evaluate(cfg: Config) -> Evaluation:
    """Evaluate a config that :func:`load_run` has read."""
    runner = Runner.from_cfg(cfg)
    metrics = {
        key.rpartition('bbox_')[2]: float(value)
        for key, value in runner.test().items() if 'bbox_' in key
    }
    return Evaluation(
        osp.basename(osp.normpath(cfg.work_dir)), _bits(runner.model), metrics,
        cfg.get('randomness', {}).get('seed'), runner)


def _bits(model: nn.Module) -> str:
    bits: List[str] = [
        f'{layer.weight_quantizer.bits}/{layer.act_quantizer.bits}'
        for _, layer in lcq_layers(model)
    ]
    return max(bits, key=bits.count) if bits else 'float'


def write_record(path: str, rows: List[Dict[str, Any]]) -> None:
    """Write rows with the command, commit, versions and hardware as JSON."""
    env = collect_env()
    record = dict(
        command=' '.join([osp.basename(sys.executable), *sys.argv]),
        commit=_commit(),
        versions={
            'lcq_mmdet': lcq_mmdet.__version__,
            **{
                key: env[key]
                for key in ('Python', 'PyTorch', 'OpenCV', 'MMEngine') if key
                in env
            }
        },
        hardware=dict(
            cpus=os.cpu_count(), gpus=env.get('GPU 0', 'none')),
        rows=rows)
    temporary = f'{path}.tmp'
    with open(temporary, 'w') as file:
        json.dump(record, file, indent=2)
        file.write('\n')
    os.replace(temporary, path)


def _commit() -> str:
    folder = osp.dirname(osp.abspath(lcq_mmdet.__file__))
    result = subprocess.run(['git', 'describe', '--always', '--dirty'],
                            cwd=folder,
                            capture_output=True,
                            text=True)
    return result.stdout.strip() or 'unknown'
