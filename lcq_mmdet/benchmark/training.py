"""Time and memory of a training step, and time of the calibration."""
from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.config import Config

from lcq_mmdet.datasets.configs import innermost, type_name
from lcq_mmdet.errors import LCQError

from .steps import TrainingSteps
from .timing import interleaved_medians


def training_rows(case: str,
                  cfg: Config,
                  bits: int,
                  rounds: int,
                  ablate: bool = False) -> List[Dict[str, Any]]:
    """Measure a detector in float, uniformly quantized and with LCQ.

    Args:
        case: What the detector is called.
        cfg: Its config, float or quantized.
        bits: Bits of weights and inputs, 2 to 8.
        rounds: Timed steps of each.
        ablate: Whether to measure LCQ also without recomputation.
    """
    case = f'{case}, {bits} bits'
    steps = TrainingSteps(cfg, bits, ablate)
    seconds = interleaved_medians(steps.calls(), rounds)
    memory = steps.peak_memory()
    rows = [
        dict(
            case=case,
            name=name,
            seconds=dict(step=value),
            peak_memory=memory[name]) for name, value in seconds.items()
    ]
    # The target to compare the calibration with.
    calibration = {'ten steps of training in float': 10 * seconds['float']}
    for name, value in steps.calibration.items():
        calibration[f'calibration of all {name} quantizers on eight '
                    'batches'] = value
    return rows + [
        dict(
            case=f'{case}, calibration', name=name, seconds=dict(step=value))
        for name, value in calibration.items()
    ]


def change_training_(cfg: Config,
                     size: Optional[Sequence[int]] = None,
                     batch_size: Optional[int] = None,
                     amp: bool = False) -> None:
    """Change what a step is made of, in place.

    Args:
        cfg: Config of a detector.
        size: Height and width of the images in pixels, which are stretched.
        batch_size: Images of a step.
        amp: Whether to train in mixed precision with a scaled loss.

    Raises:
        LCQError: If the images are not resized, or there is no GPU for amp.
    """
    if amp:
        if not torch.cuda.is_available():
            raise LCQError('--amp: mixed precision needs a GPU here; leave it '
                           'out to train in float32')
        cfg.optim_wrapper.update(type='AmpOptimWrapper')
    if batch_size:
        cfg.train_dataloader.batch_size = batch_size
    if not size:
        return
    resizes = [
        transform
        for _, dataset in innermost('train_dataloader', cfg.train_dataloader)
        for transform in dataset.get('pipeline', [])
        if type_name(transform) == 'Resize'
    ]
    if not resizes:
        raise LCQError(f'--size {size[0]} {size[1]}: there is no Resize in '
                       'the training pipeline; set the size in the config')
    for transform in resizes:
        transform.update(scale=(size[1], size[0]), keep_ratio=False)
