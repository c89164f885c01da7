"""The table of a converted model's layers."""
from typing import Any, Mapping, Optional

from rich import box
from rich.table import Table
from torch import nn

from lcq_mmdet.conversion.selection import weighted_layers
from lcq_mmdet.quantization.layers import QuantizedLayer

from .cost import quantized_share
from .tables import render


def layer_table(model: nn.Module,
                macs: Optional[Mapping[str, int]] = None,
                num_images: int = 1) -> str:
    """Tabulate a converted model's layers, quantized or left in float.

    Args:
        model: What :func:`~lcq_mmdet.convert_` has converted.
        macs: What :func:`count_macs` counted, if it did.
        num_images: Number of images it counted over.

    Returns:
        Text with a row a layer: bits and levels of weight and input, whether
        the weight came from a packed file, whether the input is signed
        (``?`` before calibration), the share of all multiply-accumulates,
        and why a layer stays in float.
    """
    macs = macs or {}
    total = sum(macs.values())
    table = Table(box=box.SIMPLE, show_footer=bool(total))
    left_float: Any = getattr(model, 'lcq_summary').left_float
    share = quantized_share(model, macs)
    table.add_column('layer', 'quantized')
    for heading in ('bits W/A', 'input', 'levels W/A'):
        table.add_column(heading, justify='right')
    table.add_column('MACs', f'{share:.1%}', justify='right')
    table.add_column('left in float because',
                     f'of {total / num_images / 1e9:.3g} GMACs an image')

    for name, module in weighted_layers(model):
        part = f'{macs.get(name, 0) / total:.1%}' if total else ''
        if isinstance(module, QuantizedLayer):
            weight, act = module.weight_quantizer, module.act_quantizer
            known = act.is_initialized
            table.add_row(
                name, f'{weight.bits}/{act.bits}' +
                (' packed' if weight.is_packed else ''),
                ('signed' if act.is_signed else 'unsigned') if known else '?',
                f'{weight.num_levels}/{act.num_levels if known else "?"}',
                part)
        elif name in left_float:
            table.add_row(name, 'float', '', '', part,
                          left_float[name])
    return render(table)
