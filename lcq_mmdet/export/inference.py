"""One detector's network as several engines run it, ready to be timed."""
import os.path as osp
from functools import partial
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import onnx
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from onnxruntime.quantization import (CalibrationDataReader, QuantType,
                                      quantize_static)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from lcq_mmdet.calibration import initialize_, observe
from lcq_mmdet.model import apply_lcq, float_config

from .graphs import export_onnx
from .graphs.network import DetectorNetwork
from .graphs.session import Graph, sums_saturate
from .graphs.trace import trace

_NUM_IMAGES = 2


class Engines:
    """The network of a detector in float, quantized and in 8-bit integers.

    It has random weights and sees noise, which takes as long as anything
    else. Values of a second stage are computed for three regions.

    Args:
        cfg: Config of a float or quantized detector.
        bits: Bits of weights and inputs, 2 to 8.
        size: Height and width of the image in pixels.
        folder: Where files may be written.
        modules: What is quantized, as :func:`~lcq_mmdet.convert_` takes it.

    Attributes:
        file_bytes: Sizes of the files, by name of the engine.
    """

    def __init__(self,
                 cfg: Config,
                 bits: int,
                 size: Tuple[int, int],
                 folder: str,
                 modules: Optional[Sequence[str]] = None) -> None:
        self.file_bytes: Dict[str, int] = {}
        self._folder, self._size = folder, size
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        network = DetectorNetwork(_build(float_config(cfg)))
        self._inputs = self._noise(network)
        network(*self._inputs)
        self._calls: Dict[str, Callable[..., Any]] = {'torch, float': network}
        path = self._path('onnxruntime, float')
        onnx.save(trace(network), path)
        self._add('onnxruntime, float', path, network)
        self._add('onnxruntime, its own static 8-bit quantization',
                  self._quantize_float(path, network), network)

        cfg = apply_lcq(cfg, bits, modules=modules)
        model = _build(cfg)
        network = DetectorNetwork(model)
        images = [self._noise(network)[0] for _ in range(_NUM_IMAGES)]
        with observe(model) as observations:
            network(*self._inputs)
        initialize_(model, observations)
        network(*self._inputs)
        for name, int8 in (('onnxruntime, LCQ in float', None),
                           ('onnxruntime, LCQ in 8 bits, exact', 'exact'),
                           ('onnxruntime, LCQ in 8 bits, relaxed',
                            'relaxed')):
            path = self._path(name)
            export_onnx(model, path, cfg.to_dict(), int8=int8, images=images)
            self._add(name, path, network)

    def calls(self) -> Dict[str, Callable[[], Any]]:
        """Return functions that run the network on one image, by name."""
        return {
            name: partial(self._call, function)
            for name, function in self._calls.items()
        }

    @torch.no_grad()
    def _call(self, function: Callable[..., Any]) -> Any:
        return function(*self._inputs)

    def _noise(self, network: DetectorNetwork) -> Tuple[Tensor, ...]:
        _, *pooled = network.example(*self._size)
        return torch.randn(1, 3, *self._size), *pooled

    def _path(self, name: str) -> str:
        return osp.join(self._folder, f'{name}.onnx')

    def _add(self, name: str, path: str, network: DetectorNetwork) -> None:
        self.file_bytes[name] = osp.getsize(path)
        self._calls[name] = Graph(
            onnx.load(path), network.inputs, network.outputs)

    def _quantize_float(self, path: str, network: DetectorNetwork) -> str:
        """Quantize the float graph as onnxruntime's documentation advises."""
        prepared, target = self._path('prepared'), self._path('static')
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _Batches(network.inputs, self._inputs),
            per_channel=True,
            reduce_range=sums_saturate(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8)
        return target


class _Batches(CalibrationDataReader):
    """One batch of inputs, as onnxruntime asks for them."""

    def __init__(self, names: Sequence[str],
                 inputs: Sequence[Tensor]) -> None:
        self._batches = iter([{
            name: value.numpy()
            for name, value in zip(names, inputs)
        }])

    def get_next(self) -> Any:
        return next(self._batches, None)


def _build(cfg: Config) -> nn.Module:
    # Nothing is downloaded to measure time.
    if cfg.model.get('backbone', {}).get('init_cfg'):
        cfg.model.backbone.init_cfg = None
    with MODELS.switch_scope_and_registry(None) as registry:
        model = registry.build(cfg.model)
    model.init_weights()
    return model.eval().requires_grad_(False)
