"""What a detector costs on a device: work, bit operations and bytes."""
from collections import Counter
from contextlib import contextmanager
from typing import Any, Iterator, Mapping, NamedTuple

from torch import Tensor, nn

from lcq_mmdet.convert import lcq_layers
from lcq_mmdet.layers import LCQConv2d

_FLOAT_BITS = 32


class Cost(NamedTuple):
    """The computed cost of a detector; nothing of it is measured.

    Attributes:
        macs: Multiply-accumulates for one image.
        quantized_share: Share of them in quantized layers, [0, 1].
        bops: Bit operations for one image: multiply-accumulates, each times
            the bits of its weight and of its input, 32 where they are float.
        bytes: Size of the packed model: quantized weights at their bits, a
            table of float32 levels for each quantizer, a float32 scale for
            each output channel where ``weight_norm='channel'``, and all else
            as it is.
    """
    macs: float
    quantized_share: float
    bops: float
    bytes: int


def cost(model: nn.Module, macs: Mapping[str, int], num_images: int) -> Cost:
    """Compute the cost of a detector, float or converted.

    Args:
        model: Any module.
        macs: What :func:`count_macs` counted.
        num_images: Number of images it counted over.
    """
    return Cost(
        sum(macs.values()) / num_images, quantized_share(model, macs),
        _bops(model, macs) / num_images, _bytes(model))


@contextmanager
def count_macs(model: nn.Module) -> Iterator['Counter[str]']:
    """Count multiply-accumulates of forward passes by layer.

    Counts layers that multiply by a weight matrix: convolutions of any kind
    and linear layers. A shared layer counts each of its calls.

    Yields:
        Numbers of multiply-accumulates by qualified name.
    """
    macs: 'Counter[str]' = Counter()
    handles = []

    def hook(name: str):

        def count(module: Any, inputs, output) -> None:
            transposed = getattr(module, 'transposed', False)
            positions: Tensor = inputs[0] if transposed else output
            macs[name] += positions.numel() * module.weight[0].numel()

        return count

    for name, module in model.named_modules():
        if getattr(getattr(module, 'weight', None), 'ndim', 0) >= 2:
            handles.append(module.register_forward_hook(hook(name)))
    try:
        yield macs
    finally:
        for handle in handles:
            handle.remove()


def quantized_share(model: nn.Module, macs: Mapping[str, int]) -> float:
    """Compute the share of multiply-accumulates in quantized layers, [0, 1].

    Args:
        model: Any module.
        macs: What :func:`count_macs` counted.
    """
    total = sum(macs.values())
    quantized = sum(macs.get(name, 0) for name, _ in lcq_layers(model))
    return quantized / total if total else 0.


def _bops(model: nn.Module, macs: Mapping[str, int]) -> int:
    layers = dict(lcq_layers(model))
    bops = 0
    for name, count in macs.items():
        layer = layers.get(name)
        if layer is None:
            bops += count * _FLOAT_BITS**2
        else:
            bops += (count * layer.weight_quantizer.bits *
                     layer.act_quantizer.bits)
    return bops


def _bytes(model: nn.Module) -> int:
    left_out = set()
    total = 0
    for module in model.modules():
        if isinstance(module, LCQConv2d):
            left_out.add(id(module.weight))
            weight, act = module.weight_quantizer, module.act_quantizer
            total += -(-module.weight.numel() * weight.bits // 8)
            total += 4 * (weight.num_levels + act.num_levels)
            if weight.weight_norm == 'channel':
                total += 4 * module.out_channels
            for quantizer in (weight, act):
                left_out.update(map(id, quantizer.state_dict(
                    keep_vars=True).values()))
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in left_out:
            total += tensor.numel() * tensor.element_size()
    return total
