"""A self-contained graph in the place of a detector, to evaluate it."""
from typing import Any, List, Mapping, Sequence

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from lcq_mmdet.datasets.configs import innermost, type_name
from lcq_mmdet.errors import LCQError

from ..engines import ENGINES
from ..graphs.metadata import is_self_contained, load_graph
from ..graphs.network import IMAGE
from ..graphs.session import Graph
from .metadata import OUTPUTS


@MODELS.register_module()
class EndToEndDetector(BaseModel):
    """Let a graph find the boxes of images as they come from the data.

    Args:
        path: File of ``lcq export --end2end``.
        config: The model's part of the config of the quantized detector.
        engine: ``'onnxruntime'`` or ``'openvino'``.

    Raises:
        LCQError: If the file cannot be read, is altered, of another version
            or of another config, or does not find boxes.
    """

    def __init__(self,
                 path: str,
                 config: Mapping[str, Any],
                 engine: str = ENGINES[0]) -> None:
        super().__init__()
        model = load_graph(path, config)
        if not is_self_contained(model):
            raise LCQError(f'{path}: finds no boxes; export it again with '
                           '--end2end')
        try:
            self._graph = Graph(model, [IMAGE], OUTPUTS, engine=engine)
        except LCQError as error:
            raise LCQError(f'{path}: {error}') from None

    def forward(self,
                inputs: Sequence[Tensor],
                data_samples: Sequence[Any],
                mode: str = 'predict') -> List[Any]:
        """Detect objects.

        Args:
            inputs: Images of any size, uint8, (3, height, width), blue first
                as mmcv loads them.
            data_samples: The sample of each image.
            mode: ``'predict'``.

        Returns:
            The samples with their predictions, in pixels of the image file.

        Raises:
            LCQError: If there is another mode, or an image cannot be taken.
        """
        if mode != 'predict':
            raise LCQError(f"mode={mode!r}: a graph knows 'predict' only")
        for image, sample in zip(inputs, data_samples):
            dets, labels = self._graph(image.flip(0).permute(1, 2, 0)[None])
            found = dets[0, :, :4]
            scale = found.new_tensor(sample.scale_factor).repeat(2)
            sample.pred_instances = InstanceData(
                bboxes=found / scale, scores=dets[0, :, 4], labels=labels[0])
        return list(data_samples)


def leave_padding_to_graph(cfg: Config) -> None:
    """Take out what pads images in the test pipeline, in place."""
    for _, dataset in innermost('test_dataloader', cfg.test_dataloader):
        dataset['pipeline'] = [
            transform for transform in dataset['pipeline']
            if type_name(transform) != 'Pad'
        ]
