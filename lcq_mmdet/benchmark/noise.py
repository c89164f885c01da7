"""Run any detector of mmdet's on noise, as images or as a video."""
import os.path as osp
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import mmdet
import torch
from mmdet.models import TrackDataPreprocessor
from mmdet.structures import DetDataSample, TrackDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

#: Height and width of the images to try, the odd ones first.
SIZES = ((75, 107), (128, 128), (320, 320))
_PACKAGES = osp.dirname(osp.dirname(mmdet.__file__))


class CannotRun(Exception):
    """A float model that cannot be built or run here; says why."""


def describe(error: BaseException) -> str:
    """Tell an error in one line, with paths below the installed packages."""
    text = str(error).strip().replace(f'{_PACKAGES}/', '')
    lines = text.splitlines() or ['']
    return f'{type(error).__name__}: {" ".join(lines[0].split())}'[:300]


def find_forward(
    model: nn.Module
) -> Tuple[Callable[[nn.Module], List[Tensor]], str, Sequence[int]]:
    """Find a way to run a float model: the first that works."""
    errors: List[str] = []
    for size in SIZES:
        for mode in ('tensor', 'predict'):
            try:
                _forward(model, mode, size)
            except Exception as error:
                errors.append(f'{mode} of {size[0]} x {size[1]}: '
                              f'{describe(error)}')
                continue
            return (lambda m: _forward(m, mode, size)), mode, size
    raise CannotRun(f'does not run: {errors[0]}')


@torch.no_grad()
def _forward(model: nn.Module, mode: str,
             size: Sequence[int]) -> List[Tensor]:
    """Run a detector on the same noise each time; return all its tensors."""
    # What tracks objects wraps what detects.
    detector: Any = getattr(model, 'detector', None) or model
    data = detector.data_preprocessor(
        _inputs(size, isinstance(detector.data_preprocessor,
                                 TrackDataPreprocessor)), False)
    if isinstance(data['inputs'], list):
        data['inputs'] = torch.stack(data['inputs']).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(_tensors(detector(**data, mode=mode)))


def _inputs(size: Sequence[int], is_video: bool) -> Dict[str, Any]:
    """Make a batch of one image, or of a video with one, of noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(
        256, (3, *size), generator=generator, dtype=torch.uint8)
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_path='',
            img_shape=tuple(size),
            ori_shape=tuple(size),
            pad_shape=tuple(size),
            batch_input_shape=tuple(size),
            scale_factor=(1., 1.),
            frame_id=0,
            text=('thing', ),
            custom_entities=True))
    boxes = torch.tensor([[0., 0., 32., 32.], [16., 8., 60., 70.]])
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.zeros(2, dtype=torch.long))
    # Some do without a network that proposes.
    sample.proposals = InstanceData(bboxes=boxes)
    if not is_video:
        return dict(inputs=[image], data_samples=[sample])
    video = TrackDataSample()
    video.video_data_samples = [sample]
    video.set_metainfo(dict(key_frames_inds=[0], ref_frames_inds=[]))
    return dict(inputs=[image[None]], data_samples=[video])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, 'all_items'):
        yield from _tensors([item for _, item in value.all_items()])
    elif hasattr(value, 'tensor'):
        yield value.tensor
