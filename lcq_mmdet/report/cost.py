"""What a detector costs on a device: work, bit operations and bytes."""
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Dict, Iterator, Mapping, NamedTuple

from torch import Tensor, nn

from lcq_mmdet.conversion.selection import weighted_layers
from lcq_mmdet.quantization.layers import QuantizedLayer, lcq_layers
from lcq_mmdet.quantization.weight import packed_size

_FLOAT_BITS = 32
_PROJECTED = {
    'in_proj_weight': ('query', 'key', 'value'),
    'q_proj_weight': ('query', ),
    'k_proj_weight': ('key', ),
    'v_proj_weight': ('value', ),
}


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

    Counts layers that multiply by a weight matrix: convolutions of any kind,
    linear layers and the projections of attention; of the latter not the
    products of queries, keys and values. A shared layer counts each of its
    calls.

    Yields:
        Numbers of multiply-accumulates by qualified name.
    """
    macs: 'Counter[str]' = Counter()
    with ExitStack() as stack:
        for name, module in weighted_layers(model):
            hook: Any = (
                _count_projections if isinstance(
                    module, nn.MultiheadAttention) else _count_layer)
            handle = module.register_forward_hook(
                partial(hook, macs, name), with_kwargs=True)
            stack.callback(handle.remove)
        yield macs


def _count_layer(macs: 'Counter[str]', name: str, module: Any, inputs: tuple,
                 kwargs: Dict[str, Any], output: Any) -> None:
    transposed = getattr(module, 'transposed', False)
    positions: Any = inputs[0] if transposed else output
    # TridentNet's convolution gives one tensor for each dilation.
    for tensor in [positions] if isinstance(positions, Tensor) else positions:
        macs[name] += tensor.numel() * module.weight[0].numel()


def _count_projections(macs: 'Counter[str]', name: str, module: Any,
                       inputs: tuple, kwargs: Dict[str, Any],
                       output: tuple) -> None:
    path, dot, key = name.rpartition('.')
    projected = _PROJECTED[key]
    given = dict(zip(_PROJECTED['in_proj_weight'], inputs), **kwargs)
    macs[name] += module.embed_dim * sum(given[k].numel() for k in projected)
    if 'query' in projected:
        # Its forward is never called.
        macs[f'{path}{dot}out_proj'] += module.embed_dim * output[0].numel()


def quantized_share(model: nn.Module, macs: Mapping[str, int]) -> float:
    """Compute the share of multiply-accumulates in quantized layers, [0, 1].

    Args:
        model: Any module.
        macs: What :func:`count_macs` counted.
    """
    total = sum(macs.values())
    quantized = sum(macs.get(name, 0) for name, _ in lcq_layers(model))
    return quantized / total if total else 0.


def layer_bops(layer: QuantizedLayer, macs: int) -> int:
    """Count the bit operations of so many multiply-accumulates."""
    return macs * layer.weight_quantizer.bits * layer.act_quantizer.bits


def layer_bytes(layer: QuantizedLayer) -> int:
    """Count the bytes of a layer's packed weight and of its tables."""
    weight = layer.weight_quantizer
    total = packed_size(layer.weight.numel(), weight.bits)
    total += 4 * sum(
        quantizer.num_levels for _, quantizer in layer.quantizers())
    if weight.has_scale:
        total += 4 * len(layer.weight)
    return total


def _bops(model: nn.Module, macs: Mapping[str, int]) -> int:
    layers = dict(lcq_layers(model))
    return sum(
        layer_bops(layers[name], count) if name in layers else count *
        _FLOAT_BITS**2 for name, count in macs.items())


def _bytes(model: nn.Module) -> int:
    left_out = set()
    total = 0
    for _, layer in lcq_layers(model):
        total += layer_bytes(layer)
        left_out.add(id(layer.weight))
        for _, quantizer in layer.quantizers():
            left_out.update(map(id, quantizer.state_dict(
                keep_vars=True).values()))
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in left_out:
            total += tensor.numel() * tensor.element_size()
    return total
