"""Watch what the quantizers would get, and fill in clip and theta from it."""
import math
import random
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterable, Iterator, List

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lcq_mmdet.errors import LCQError, some

from .layers import lcq_layers

_MAX_SAMPLES = 2**16


class Observation:
    """What was seen of the input of one layer.

    Attributes:
        minimum: Smallest value so far; ``inf`` before the first batch.
        maximum: Largest value so far; ``-inf`` before the first batch.
        finite: Whether all values were finite.
    """

    def __init__(self) -> None:
        self.minimum, self.maximum = float('inf'), float('-inf')
        self.finite = True
        self._samples: List[Tensor] = []

    def update(self, x: Tensor) -> None:
        """Take in a batch, any shape, keeping 2**15 values drawn at random.

        An empty one, as heads of two stages get without proposals, is none.
        """
        x = x.detach()
        if not x.numel():
            return
        # Either is NaN where a value is.
        low, high = torch.stack(x.aminmax()).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            return
        self.minimum = min(self.minimum, low)
        self.maximum = max(self.maximum, high)
        index = torch.randint(x.numel(), (2**15, ))
        self._samples.append(x.flatten()[index.to(x.device)].float())

    @property
    def reached(self) -> bool:
        """Whether the layer got an input at all."""
        return not self.finite or self.maximum >= self.minimum

    def samples(self) -> Tensor:
        """Return at most 2**16 values and both extremes, shape (N)."""
        share = _MAX_SAMPLES // len(self._samples)
        extremes = self._samples[0].new_tensor([self.minimum, self.maximum])
        return torch.cat([*(part[:share] for part in self._samples), extremes])


@contextmanager
def observe(model: nn.Module) -> Iterator[Dict[str, Observation]]:
    """Observe the inputs of all quantized layers during forward passes.

    Inside, the model is in eval mode, computes in float and builds no graph.

    Yields:
        Observations by what :func:`input_name` calls an input.
    """
    observations: Dict[str, Observation] = {}
    was_training = model.training
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.callback(model.train, was_training)
        model.eval()
        for name, layer in lcq_layers(model):
            for key, quantizer in layer.quantizers():
                quantizer.bypass = True
                stack.callback(setattr, quantizer, 'bypass', False)
                if quantizer.is_weight:
                    continue
                observation = Observation()
                observations[input_name(name, key)] = observation
                handle = quantizer.register_forward_pre_hook(
                    lambda _, inputs, o=observation: o.update(inputs[0]))
                stack.callback(handle.remove)
        yield observations


def check_reached(observations: Dict[str, Observation]) -> None:
    """Raise an ``LCQError`` for layers whose forward never ran."""
    missed = [name for name, seen in observations.items() if not seen.reached]
    levels = [name for name in missed if '.act_quantizer.level' in name]
    if levels:
        raise LCQError(
            f'per_level=True: forward did not reach {some(levels)}: the head '
            'does not call these layers once a level; set per_level=False for '
            'them in overrides')
    if missed:
        raise LCQError(
            f'{", ".join(missed)}: forward did not reach '
            f'{"this layer" if len(missed) == 1 else "these layers"}; it is '
            'unused, or code reads its weight behind its back, as '
            'efficient_conv_bn_eval does: turn that off or add it to '
            'model.exclude')


@torch.no_grad()
def initialize_(model: nn.Module,
                observations: Dict[str, Observation]) -> List[str]:
    """Fill in the observed quantizers that have no values yet, in place.

    An input without a negative value is quantized without sign.

    Returns:
        Names of the quantizers that were filled in.

    Raises:
        LCQError: If an input was not finite or constant, before anything is
            changed.
    """
    for name, seen in observations.items():
        if not seen.finite:
            raise LCQError(
                f'{name}: its input is NaN or infinite during calibration; '
                'check load_from and the data')
        if seen.minimum == seen.maximum:
            raise LCQError(
                f'{name}: its input is {seen.minimum:g} everywhere during '
                'calibration; check load_from, or add it to model.exclude')
    filled = []
    for name, layer in lcq_layers(model):
        inputs = {
            key: observations[input_name(name, key)]
            for key, _ in layer.quantizers()
            if input_name(name, key) in observations
        }
        for key, quantizer in layer.quantizers():
            if not inputs or quantizer.is_initialized:
                continue
            if quantizer.is_weight:
                quantizer.initialize_(layer.weight, signed=True)
            else:
                quantizer.initialize_(inputs[key].samples(),
                                      signed=inputs[key].minimum < 0)
            filled.append(f'{name}.{key}')
    return filled


def calibrate_(model: nn.Module, batches: Iterable[Any]) -> List[str]:
    """Fit the quantizers that have no values yet to data, in place.

    After :func:`~lcq_mmdet.convert_` this is post-training quantization.

    Args:
        model: A converted model, not wrapped, in any mode.
        batches: What :func:`run_forward` takes, one or more.

    Returns:
        Names of the quantizers that were fitted.

    Raises:
        LCQError: If a quantized layer got no input, or one that is constant
            or not finite.

    Examples:
        >>> from lcq_mmdet import convert_
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> _ = convert_(model, bits=4, modules=['*'])
        >>> calibrate_(model, [torch.randn(2, 3, 9, 9)])
        ['0.act_quantizer', '0.weight_quantizer']
    """
    with observe(model) as observations:
        for batch in batches:
            run_forward(model, batch)
    check_reached(observations)
    return initialize_(model, observations)


def run_forward(model: Any, batch: Any) -> Any:
    """Pass a batch through a model.

    Args:
        model: A model of mmengine's, which computes its raw outputs, or any
            other module.
        batch: For a model of mmengine's a batch of its data loader, which
            its preprocessor takes; else a tuple or list of arguments, a
            dictionary of them by name, or the one argument there is.
    """
    if isinstance(model, BaseModel):
        return model._run_forward(
            model.data_preprocessor(batch, False), mode='tensor')
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def input_name(layer: str, quantizer: str) -> str:
    """Name an input: as its layer, with the quantizer where it has many."""
    return layer if quantizer == 'act_quantizer' else f'{layer}.{quantizer}'


def sample_batches(loader: DataLoader, num_batches: int) -> DataLoader:
    """Make a loader of random batches, as many as there are at most.

    Args:
        loader: What loads the data set; its sampler is not used.
        num_batches: Number of batches, 1 or more.
    """
    sampler: Any = loader.batch_sampler
    batch_size: int = loader.batch_size or sampler.batch_size
    order = torch.randperm(len(loader.dataset)).tolist()  # type: ignore
    return DataLoader(
        Subset(loader.dataset, order[:num_batches * batch_size]),
        batch_size=batch_size,
        collate_fn=loader.collate_fn)


@contextmanager
def fixed_random_state(seed: int) -> Iterator[None]:
    """Seed python, numpy and torch inside, and restore their states after."""
    states = random.getstate(), np.random.get_state()
    # A GPU that is not in use is left alone.
    has_gpu = torch.cuda.is_initialized()
    devices = [torch.cuda.current_device()] if has_gpu else []
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        if has_gpu:
            torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
