"""Check that a config of mmdet's can be quantized."""
import os
import os.path as osp
from collections import Counter
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import mmdet
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.registry import MODELS
from rich import box
from rich.table import Table
from torch import distributed, nn

from lcq_mmdet.conversion.building import without_weights
from lcq_mmdet.conversion.model import apply_lcq
from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.calibration import initialize_, observe
from lcq_mmdet.quantization.layers import lcq_layers
from lcq_mmdet.report.cost import count_macs, quantized_share
from lcq_mmdet.report.tables import render

from .noise import CannotRun, describe, find_forward

Row = Dict[str, Any]
ROOT = osp.join(osp.dirname(mmdet.__file__), '.mim')
_BITS = 4
# At most so many go on to second stages, which would outweigh all else.
_PROPOSALS = 20


def list_configs(root: str = ROOT) -> Dict[str, List[str]]:
    """List the configs of mmdet's families, the shortest name first.

    Args:
        root: Folder that holds ``configs``.

    Returns:
        Paths below ``configs``, by family.
    """
    folder = osp.join(root, 'configs')
    families = {}
    for family in sorted(os.listdir(folder)):
        path = osp.join(folder, family)
        if family.startswith('_') or not osp.isdir(path):
            continue
        names = (
            osp.relpath(osp.join(where, name), folder)
            for where, _, files in os.walk(path) for name in files
            if name.endswith('.py'))
        families[family] = sorted(names, key=lambda n: (len(n), n))
    return families


def check_config(path: str,
                 root: str = ROOT,
                 modules: Optional[Sequence[str]] = None) -> Row:
    """Convert the model of a config at 4 bits and run it on a small image.

    No weights are loaded. Whatever the float model cannot do here is told
    apart from what conversion breaks.

    Args:
        path: Path of the config below ``configs``.
        root: Folder that holds ``configs``; it becomes the current one, as
            some configs name others relative to it.
        modules: What to quantize, as :func:`~lcq_mmdet.convert_` takes it.

    Returns:
        ``config``, ``status`` and, by it, what there is to say:
        ``'ok'`` has ``layers``, the number of quantized ones, ``left_float``,
        numbers of others by reason, ``share`` of multiply-accumulates in
        quantized layers, [0, 1], ``mode`` of the forward pass, ``size`` of
        the image and ``unreached``, quantized layers that it did not come
        to; ``'no model'`` and ``'float'``, where the float model is what
        fails, have ``reason``; ``'failed'`` has ``reason``.
    """
    os.chdir(root)
    torch.manual_seed(0)
    # Also sets mmdet's as the default scope.
    register_all_modules()
    try:
        return dict(config=path, **_check(osp.join('configs', path), modules))
    except CannotRun as error:
        return dict(config=path, status='float', reason=str(error))
    except Exception as error:
        return dict(config=path, status='failed', reason=describe(error))


def zoo_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate checked configs as Markdown.

    Args:
        rows: What :func:`check_config` returns.
    """
    table = Table(box=box.MARKDOWN)
    table.add_column('config')
    for heading in ('layers quantized', 'MACs quantized', 'image'):
        table.add_column(heading, justify='right')
    table.add_column('remarks')
    for row in rows:
        if row['status'] != 'ok':
            table.add_row(row['config'], *[''] * 3, _remark(row))
            continue
        total = row['layers'] + sum(row['left_float'].values())
        table.add_row(row['config'], f'{row["layers"]} of {total}',
                      f'{row["share"]:.1%}',
                      'x'.join(map(str, row['size'])), _remark(row))
    return render(table, width=1000)


def _remark(row: Mapping[str, Any]) -> str:
    if row['status'] == 'failed':
        return f'FAILED: {row["reason"]}'
    if row['status'] != 'ok':
        return f'float model {row["reason"]}'.replace(
            'float model it', 'the config')
    remarks = [
        f'{count} in float: {why}' for why, count in row['left_float'].items()
        if why != 'not in modules'
    ]
    if row['unreached']:
        remarks.append(f'{len(row["unreached"])} not reached by forward: '
                       f'{row["unreached"][0]}, ...')
    return '; '.join(remarks)


def _check(path: str, modules: Optional[Sequence[str]]) -> Row:
    cfg = _try('does not parse', Config.fromfile, path)
    if 'model' not in cfg:
        return dict(status='no model', reason='it describes no model')
    _single_process()
    float_model = _try('does not build', _build, cfg)
    _try('does not start', float_model.init_weights)
    _fill_unset_(float_model)
    run, mode, size = find_forward(float_model)

    quantized = apply_lcq(cfg, bits=_BITS, modules=modules, init='mse')
    model = _build(quantized)
    match = model.load_state_dict(float_model.state_dict(), strict=False)
    wrong = [key for key in match.missing_keys if '_quantizer.' not in key]
    wrong += match.unexpected_keys
    if wrong:
        raise LCQError(f'{wrong[0]}: is not in both state dicts')
    with observe(model) as observations, count_macs(model) as macs:
        run(model)
    unreached = [n for n, seen in observations.items() if not seen.reached]
    for name in unreached:
        del observations[name]
    initialize_(model, observations)
    outputs = run(model)
    if not all(t.isfinite().all() for t in outputs):
        raise LCQError('the quantized model gives values that are not finite')

    other = _build(quantized)
    other.load_state_dict(model.state_dict())
    again = run(other)
    if len(again) != len(outputs) or not all(
            map(torch.equal, outputs, again)):
        raise LCQError('the state dict does not give the same model again')
    left_float: Any = getattr(model, 'lcq_summary').left_float
    reasons = Counter(left_float.values())
    return dict(
        status='ok',
        layers=len(dict(lcq_layers(model))),
        left_float=dict(reasons.most_common()),
        share=quantized_share(model, macs),
        mode=mode,
        size=list(size),
        unreached=unreached)


def _try(what: str, function: Callable, *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:
        raise CannotRun(f'{what}: {describe(error)}') from None


def _single_process() -> None:
    """Join a process group of one, which SyncBN asks for."""
    if not is_distributed():
        distributed.init_process_group(
            'gloo', store=distributed.HashStore(), rank=0, world_size=1)


def _build(cfg: Config) -> nn.Module:
    model = MODELS.build(_few_proposals(without_weights(cfg.model)))
    # Not every detector's eval() returns it.
    model.eval()
    return model


@torch.no_grad()
def _fill_unset_(model: nn.Module) -> None:
    """Fill weights that nothing has given values; a checkpoint would."""
    for weight in model.parameters():
        if weight.dim() > 1 and not 1e-12 < weight.abs().amax() < 1e12:
            nn.init.kaiming_uniform_(weight)


def _few_proposals(cfg: Any) -> Any:
    for value in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(value, (dict, list)):
            _few_proposals(value)
    if isinstance(cfg, dict) and 'max_per_img' in cfg:
        cfg['max_per_img'] = min(cfg['max_per_img'], _PROPOSALS)
    return cfg
