"""Errors of quantized activations that have a small negative part."""
from typing import Any, Dict, List

import torch
from torch import nn

from lcq_mmdet.quantization.config import SIGNED, QuantizerConfig
from lcq_mmdet.quantization.quantizer import LCQQuantizer


@torch.no_grad()
def activation_rows() -> List[Dict[str, Any]]:
    """Compare levels above an offset with symmetric ones."""
    torch.manual_seed(0)
    x = torch.randn(2**20)
    rows = []
    for function in (nn.SiLU(), nn.GELU()):
        y = function(x)
        for bits in (4, 3, 2):
            for signed in SIGNED:
                config = QuantizerConfig().updated(
                    dict(bits=bits, signed_act=signed))
                quantizer = LCQQuantizer(config, is_weight=False)
                quantizer.initialize_(y, signed=True)
                error = (quantizer(y) - y).square().mean() / y.var()
                rows.append(
                    dict(
                        case=f'{type(function).__name__}, {bits} bits',
                        name=signed,
                        relative_error=error.item()))
    return rows
