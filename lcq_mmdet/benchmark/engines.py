"""One detector's network as several engines run it: how fast, how well."""
import copy
import os.path as osp
from functools import partial
from itertools import count, product
from typing import (Any, Callable, Dict, List, Mapping, Optional, Sequence,
                    Tuple)

import onnx
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from onnxruntime.quantization import (CalibrationDataReader, QuantType,
                                      quantize_static)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from lcq_mmdet.conversion.building import (build_model, init_weights_,
                                           without_weights)
from lcq_mmdet.conversion.model import float_config
from lcq_mmdet.export.evaluation import with_graph
from lcq_mmdet.export.graphs import export_onnx
from lcq_mmdet.export.graphs.network import DetectorNetwork
from lcq_mmdet.export.graphs.session import Graph
from lcq_mmdet.export.graphs.starting import sums_saturate
from lcq_mmdet.export.graphs.trace import trace
from lcq_mmdet.export.source import load_quantized, training_images
from lcq_mmdet.export.writer import export_packed
from lcq_mmdet.quantization.calibration import calibrate_
from lcq_mmdet.report.runs import average_precision

_NUM_IMAGES = 2
_NUMBERS = count()
#: Names of rows.
TORCH_FLOAT, TORCH = 'torch, float', 'torch, LCQ'
TITLES = dict(onnxruntime='onnxruntime', openvino='OpenVINO')
ARITHMETIC: Dict[str, Optional[str]] = {
    'LCQ in float': None,
    'LCQ in 8 bits, exact': 'exact',
    'LCQ in 8 bits, relaxed': 'relaxed',
}


class Engines:
    """The network of a detector in float, quantized and in 8-bit integers.

    It sees noise, which takes as long as anything else. Values of a second
    stage are computed for as many regions as its config lets through.

    Args:
        cfg: Config of a quantized detector. It has random weights, unless
            its ``load_from`` is a checkpoint of its training; the float
            detector beside it always has.
        size: Height and width of the image in pixels.
        folder: Where files may be written.
        engines: What runs the graphs; names of ``ENGINES``, installed.

    Attributes:
        file_bytes: Sizes of the files, by name of the engine.

    Raises:
        LCQError: If the checkpoint does not fit, or the detector cannot be
            exported.
    """

    def __init__(self, cfg: Config, size: Tuple[int, int],
                 folder: str, engines: Sequence[str]) -> None:
        self.file_bytes: Dict[str, int] = {}
        self._cfg, self._folder, self._size = cfg, folder, size
        # Of what was trained: file and engine by name.
        self._graphs: Dict[str, Tuple[str, str]] = {}
        network = DetectorNetwork(_random_model(float_config(cfg)))
        self._inputs = self._noise(network)
        self._calls: Dict[str, Callable[..., Any]] = {TORCH_FLOAT: network}
        path = self._path('float')
        onnx.save(trace(network), path)
        for engine in engines:
            self._add(f'{TITLES[engine]}, float', path, network, engine)
            if engine == 'onnxruntime':
                self._add('onnxruntime, its own static 8-bit quantization',
                          self._quantize_float(path, network), network, engine)

        model, images = self._quantized_model()
        network = DetectorNetwork(model)
        path = osp.join(folder, 'model.safetensors')
        export_packed(model, path, cfg.to_dict())
        self.file_bytes[TORCH] = osp.getsize(path)
        self._calls[TORCH] = network
        for engine, (kind, int8) in product(engines, ARITHMETIC.items()):
            name = f'{TITLES[engine]}, {kind}'
            # Only the tables of the exact one are written for an engine.
            path = self._path(name if int8 == 'exact' else kind)
            if not osp.exists(path):
                export_onnx(model, path, cfg.to_dict(), int8=int8,
                            images=images, engine=engine)
            self._graphs[name] = path, engine
            self._add(name, path, network, engine)

    def evaluate(self) -> Dict[str, Dict[str, float]]:
        """Evaluate the trained detector on its test data, network by network.

        Returns:
            AP values in [0, 1], by name of the engine and then by the names
            of ``CocoMetric``.
        """
        configs = {TORCH: self._cfg}
        for name, (path, engine) in self._graphs.items():
            configs[name] = with_graph(self._cfg, path, engine)
        return {
            name: test_metrics(cfg, self._folder)
            for name, cfg in configs.items()
        }

    def calls(self) -> Dict[str, Callable[[], Any]]:
        """Return functions that run the network on one image, by name."""
        return {
            name: partial(self._call, function)
            for name, function in self._calls.items()
        }

    @torch.no_grad()
    def _call(self, function: Callable[..., Any]) -> Any:
        return function(*self._inputs)

    def _quantized_model(self) -> Tuple[nn.Module, List[Tensor]]:
        """Return the quantized model, and images that show its ranges."""
        if self._cfg.get('load_from'):
            model, _ = load_quantized(self._cfg, self._cfg.load_from)
            model.requires_grad_(False)
            return model, list(training_images(self._cfg, model))
        model = _random_model(self._cfg)
        network = DetectorNetwork(model)
        calibrate_(network, [self._inputs])
        return model, [self._noise(network)[0] for _ in range(_NUM_IMAGES)]

    def _noise(self, network: DetectorNetwork) -> Tuple[Tensor, ...]:
        _, *pooled = network.example(*self._size)
        if pooled:
            regions = network.detector.test_cfg.rpn.max_per_img
            pooled = [torch.randn(regions, *pooled[0].shape[1:])]
        return torch.randn(1, 3, *self._size), *pooled

    def _path(self, name: str) -> str:
        return osp.join(self._folder, f'{name}.onnx')

    def _add(self, name: str, path: str, network: DetectorNetwork,
             engine: str) -> None:
        self.file_bytes[name] = osp.getsize(path)
        self._calls[name] = Graph(
            onnx.load(path), network.inputs, network.outputs, engine=engine)

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


def engine_rows(case: str, measured: str, seconds: Mapping[str, float],
                file_bytes: Mapping[str, int],
                metrics: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """Make the rows of a case for a record.

    Args:
        case: What the detector is called.
        measured: What was timed.
        seconds: Times by name of the row.
        file_bytes: Sizes of files, where there are any.
        metrics: AP values by the names of ``CocoMetric``, where there are
            any.
    """
    rows = []
    for name, value in seconds.items():
        row: Dict[str, Any] = dict(
            case=case, name=name, seconds={measured: value})
        if name in file_bytes:
            row['file_bytes'] = file_bytes[name]
        if name in metrics:
            row['metrics'] = metrics[name]
        rows.append(row)
    return rows


def test_metrics(cfg: Config, folder: str) -> Dict[str, float]:
    """Evaluate the detector of a config on its test data, quietly.

    Args:
        cfg: Config; it is not changed.
        folder: Where logs go.
    """
    cfg = copy.deepcopy(cfg)
    # mmengine keeps visualizers by name, and their folders.
    cfg.update(
        work_dir=folder,
        experiment_name=f'{osp.basename(folder)}_{next(_NUMBERS)}',
        visualizer=None,
        log_level='WARNING')
    return average_precision(Runner.from_cfg(cfg))


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


def _random_model(cfg: Config) -> nn.Module:
    # Nothing is downloaded to measure time.
    cfg = copy.deepcopy(cfg)
    cfg.model = without_weights(cfg.model)
    model = build_model(cfg)
    init_weights_(model)
    return model.eval().requires_grad_(False)
