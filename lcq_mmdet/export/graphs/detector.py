"""A detector whose network is a graph."""
from typing import Any, List, Mapping, Sequence

from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

from ..engines import ENGINES, check_engine
from .heads import (check_supported, dense_head, has_queries, region_heads,
                    second_stage_outputs)
from .metadata import is_self_contained, load_graph
from .network import IMAGE, dense_outputs, features
from .session import Graph


@MODELS.register_module()
class GraphDetector(BaseModel):
    """Let a graph compute the network of a detector, and mmdet the rest.

    Args:
        detector: Config of the float detector, or one that is built; of its
            modules only what has no weights is used. The heads that take
            regions are replaced.
        path: File of ``lcq export``.
        config: The model's part of the config of the quantized detector.
        engine: ``'onnxruntime'`` or ``'openvino'``.

    Raises:
        LCQError: If the engine is not installed, or the file cannot be read,
            is altered, of another version or of another config.
    """

    def __init__(self,
                 detector: Any,
                 path: str,
                 config: Mapping[str, Any],
                 engine: str = ENGINES[0]) -> None:
        if not isinstance(detector, nn.Module):
            detector = MODELS.build(detector)
        check_supported(detector)
        check_engine(engine)
        super().__init__(detector.data_preprocessor)
        self.detector: Any = detector
        model = load_graph(path, config)
        if is_self_contained(model):
            raise LCQError(f'{path}: has boxes in it already; what is wanted '
                           'is a graph without --end2end')
        names = [value.name for value in model.graph.output]
        second = second_stage_outputs(names)
        self._names = [name for name in names if name not in second]
        self._has_second_stage = bool(second)
        try:
            self._network = Graph(
                model, [IMAGE], self._names, engine=engine)
            for head in region_heads(self.detector):
                head.replace_(_GraphHead(
                    head.module,
                    Graph(model, [head.input], head.outputs, engine=engine)))
        except LCQError as error:
            raise LCQError(f'{path}: {error}') from None

    def forward(self,
                inputs: Tensor,
                data_samples: Sequence[Any],
                mode: str = 'predict') -> List[Any]:
        """Detect objects.

        Args:
            inputs: Preprocessed images, shape (batch, 3, height, width).
            data_samples: The sample of each image.
            mode: ``'predict'``.

        Returns:
            The samples with their predictions.

        Raises:
            LCQError: If there is another mode, or an image is padded and
                the detector would have to know.
        """
        if mode != 'predict':
            raise LCQError(f"mode={mode!r}: a graph knows 'predict' only")
        if has_queries(self.detector) and any(
                tuple(sample.img_shape) != tuple(inputs.shape[2:])
                for sample in data_samples):
            raise LCQError(
                'images of a batch have different sizes; the graph of a '
                f'{type(self.detector).__name__} does not know what is '
                'padding: set the batch_size of the dataloader to 1')
        return self.detect(self._network(inputs), data_samples)

    def detect(self, values: Sequence[Tensor],
               data_samples: Sequence[Any]) -> List[Any]:
        """Go on from the outputs of the network.

        Args:
            values: Outputs, in the order of the graph.
            data_samples: The sample of each image.
        """
        detector, samples = self.detector, list(data_samples)
        results = dense_head(detector).predict_by_feat(
            *dense_outputs(self._names, values),
            batch_img_metas=[sample.metainfo for sample in samples],
            rescale=not self._has_second_stage)
        if self._has_second_stage:
            results = detector.roi_head.predict(
                features(self._names, values), results, samples, rescale=True)
        return detector.add_pred_to_datasample(samples, results)


class _GraphHead(nn.Module):
    """A head that takes regions, whose layers are a graph."""

    def __init__(self, head: nn.Module, graph: Graph) -> None:
        super().__init__()
        self._head, self._graph = head, graph

    def forward(self, pooled: Tensor) -> Any:
        """Compute what the head does of pooled features of regions."""
        found = self._graph(pooled)
        return found if len(found) > 1 else found[0]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('_head'), name)
