"""What a packed file's bytes are spent on."""
import os
from typing import Mapping, NamedTuple

from rich import box
from rich.table import Table
from torch import Tensor, nn

from lcq_mmdet.report.tables import render

from .packed import Manifest


class PackedSizes(NamedTuple):
    """Bytes of a packed file and of the float model.

    Attributes:
        float_model: Tensors of the float model's state dict.
        total: The whole file.
        codes: Weights of quantized layers.
        quantizers: Codebooks, scales, clips, thetas and flags.
        rest: All other tensors.
    """
    float_model: int
    total: int
    codes: int
    quantizers: int
    rest: int

    @property
    def header(self) -> int:
        """Names and places of the tensors, config and manifest."""
        return self.total - self.codes - self.quantizers - self.rest

    @property
    def ratio(self) -> float:
        """Size over the float model's."""
        return self.total / self.float_model

    @property
    def overhead(self) -> float:
        """Share of the file that is header or quantizers, [0, 1]."""
        return (self.header + self.quantizers) / self.total


def count_sizes(path: str, model: nn.Module, tensors: Mapping[str, Tensor],
                manifest: Manifest) -> PackedSizes:
    """Count what is in the file at ``path``.

    Args:
        path: Path of the file.
        model: The model it was made of.
        tensors: Its tensors by name.
        manifest: Its manifest.
    """
    codes = sum(layer.bytes for layer in manifest.layers.values())
    quantizers = sum(t.nbytes for key, t in tensors.items()
                     if '_quantizer.' in key)
    total = sum(t.nbytes for t in tensors.values())
    return PackedSizes(
        float_bytes(model), os.path.getsize(path), codes, quantizers,
        total - codes - quantizers)


def float_bytes(model: nn.Module) -> int:
    """Count the bytes of the float model's state dict."""
    # Keys of one tensor count once, as torch.save writes them.
    floats = {
        value.data_ptr(): value.nbytes
        for key, value in model.state_dict().items()
        if '_quantizer.' not in key
    }
    return sum(floats.values())


def size_table(sizes: PackedSizes) -> str:
    """Tabulate the sizes beside the float model's."""
    table = Table(box=box.SIMPLE)
    table.add_column('')
    for heading in ('MB', 'of float', 'of the file'):
        table.add_column(heading, justify='right')
    rows = {
        'float model': sizes.float_model,
        'packed file': sizes.total,
        '  quantized weights': sizes.codes,
        '  everything in float': sizes.rest,
        '  codebooks and quantizers': sizes.quantizers,
        '  header': sizes.header,
    }
    for name, size in rows.items():
        part = '' if name == 'float model' else f'{size / sizes.total:.2%}'
        table.add_row(name, f'{size / 1e6:.3f}',
                      f'{size / sizes.float_model:.4f}', part)
    return render(table)
