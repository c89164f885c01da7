"""Which layers a model has."""
from typing import Dict, Iterator, Sequence, Tuple

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from lcq_mmdet.errors import LCQError
from lcq_mmdet.quantization.layers import QuantizedLayer, lcq_layers

from .patterns import check_patterns, matching


def select_layers(model: nn.Module,
                  patterns: Sequence[str],
                  key: str = 'layers') -> Dict[str, QuantizedLayer]:
    """Select quantized layers by pattern, as :func:`convert_` does.

    Args:
        model: A converted model, not wrapped.
        patterns: Patterns of qualified names.
        key: What the patterns are set with, for the error message.

    Returns:
        Layers by qualified name, in model order.

    Raises:
        LCQError: If a pattern matches no quantized layer.
    """
    layers = dict(lcq_layers(model))
    if not layers:
        raise LCQError(f'{key}={patterns!r}: the model has no quantized layer')
    check_patterns(key, patterns, layers)
    return {
        name: layer
        for name, layer in layers.items() if matching(name, patterns)
    }


def unwrap(model: nn.Module) -> nn.Module:
    """Take a model out of what a runner wraps around it."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module  # type: ignore[assignment]
    return model


def weighted_layers(model: nn.Module) -> Iterator[Tuple[str, nn.Module]]:
    """Iterate over the layers that multiply by a weight matrix, in order.

    A projection that is a parameter of an :class:`torch.nn.MultiheadAttention`
    itself comes under its name, with that module.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 2:
                    yield f'{name}.{key}'.lstrip('.'), module
        weight = getattr(module, 'weight', None)
        if getattr(weight, 'ndim', 0) >= 2 and not isinstance(
                module, nn.Embedding):
            yield name, module
