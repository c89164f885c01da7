"""Times of the quantizer's forward and backward, beside others.

All of them have as many levels, and gradients of the same parameters but for
theta: the clip or scale, and the offset or zero point where it is learned.
"""
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from lcq_mmdet.functional import lcq_quantize_reference
from lcq_mmdet.quantization.config import QuantizerConfig
from lcq_mmdet.quantization.quantizer import LCQQuantizer

from .timing import interleaved_medians

DTYPES = dict(
    float32=torch.float32, float16=torch.float16, bfloat16=torch.bfloat16)
COPY = 'a copy of the same bytes'
#: Tensors of the size of x that are read or written, over those of a copy.
_STREAMS = dict(forward=1., backward=1.5, both=2.5)


class Contestant(NamedTuple):
    """A function of x, and which of its parameters get a gradient."""
    function: Callable[[Tensor], Tensor]
    parameters: Sequence[Tensor]


def kernel_rows(size: int, bits: int, rounds: int,
                dtype: str) -> Iterator[List[Dict[str, Any]]]:
    """Measure an input and a weight; yield the rows of each.

    Args:
        size: Number of values of the input.
        bits: Bits of both, 2 to 8.
        rounds: Timed calls of each.
        dtype: One of ``DTYPES``, of what is quantized.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    # Lets the backward of what torch.compile makes run more than once.
    functorch_config.donated_buffer = False
    torch.manual_seed(0)
    side = int((size / 64)**0.5)
    inputs = {
        f'input, {64 * side * side:,} values':
        torch.randn(1, 64, side, side, device=device).relu_(),
        'weight, 512 x 512 x 3 x 3':
        torch.randn(512, 512, 3, 3, device=device) * 0.02
    }
    for name, x in inputs.items():
        quantizer = LCQQuantizer(QuantizerConfig().updated(dict(bits=bits)),
                                 is_weight=name.startswith('weight'))
        quantizer.to(device).initialize_(x, signed=quantizer.is_weight)
        x = x.to(DTYPES[dtype])
        suffix = '' if dtype == 'float32' else f', {dtype}'
        times = _time_directions(contestants(quantizer, x), x, rounds)
        yield [
            dict(
                case=f'{name}, {bits} bits{suffix}',
                name=row_name,
                seconds=seconds,
                copy_share={
                    key: times[COPY][key] / value
                    for key, value in seconds.items()
                }) for row_name, seconds in times.items()
        ]


def contestants(quantizer: LCQQuantizer, x: Tensor) -> Dict[str, Contestant]:
    """Return what is compared, by name.

    Args:
        quantizer: An initialized quantizer that is not symmetric.
        x: What it was initialized with.
    """
    clip, theta, offset = quantizer.clip, quantizer.theta, quantizer.lowest
    learned = [clip, theta] + ([] if offset is None else [offset])

    def reference(x: Tensor) -> Tensor:
        return lcq_quantize_reference(x, clip, theta, quantizer.bits,
                                      quantizer.is_symmetric, offset,
                                      quantizer.weight_norm != 'none')

    unit = quantizer.scale(x.float())
    low, high = (unit * end.detach() for end in quantizer.range())
    scale = ((high - low) / quantizer.num_steps).reshape(1).requires_grad_()
    zero_point = (-low / scale.detach()).reshape(1).requires_grad_()

    def native(x: Tensor) -> Tensor:
        # It takes float32 only.
        y = torch._fake_quantize_learnable_per_tensor_affine(
            x.float(), scale, zero_point, 0, quantizer.num_steps, 1.)
        return y.to(x.dtype)

    return {
        "torch's learnable fake quantizer":
        Contestant(native, [scale] if offset is None else [scale, zero_point]),
        'LCQ': Contestant(quantizer, learned),
        'LCQ, reference': Contestant(reference, learned),
        'LCQ, reference, torch.compile':
        Contestant(torch.compile(reference), learned),
    }


def _time_directions(contestants: Dict[str, Contestant], x: Tensor,
                     rounds: int) -> Dict[str, Dict[str, float]]:
    """Time forward, backward and both.

    Returns:
        Seconds by name of the function, then by direction.
    """
    x.requires_grad_()
    dy = torch.randn_like(x)
    calls: Dict[str, Callable[[], Any]] = {}
    for name, (function, parameters) in contestants.items():
        inputs = [x, *parameters]
        y = function(x)

        def forward(function: Callable = function) -> Tensor:
            return function(x)

        def backward(y: Tensor = y, inputs: Any = inputs) -> Any:
            return torch.autograd.grad(y, inputs, dy, retain_graph=True)

        def both(function: Callable = function,
                 inputs: Any = inputs) -> Any:
            return torch.autograd.grad(function(x), inputs, dy)

        calls[f'{name}/forward'] = forward
        calls[f'{name}/backward'] = backward
        calls[f'{name}/both'] = both
    for direction, streams in _STREAMS.items():
        source = torch.randn(
            int(streams * x.numel()), device=x.device).to(x.dtype)
        target = torch.empty_like(source)
        calls[f'{COPY}/{direction}'] = partial(target.copy_, source)
    times: Dict[str, Dict[str, float]] = {}
    for key, value in interleaved_medians(calls, rounds).items():
        name, _, direction = key.partition('/')
        times.setdefault(name, {})[direction] = value
    return times
