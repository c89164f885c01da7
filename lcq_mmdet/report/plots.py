"""Pictures of what was learned and of what it detects."""
from copy import deepcopy
from typing import Any, Dict, Tuple

import mmcv
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor, scale_boxes
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from torch import Tensor

from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.functional import compress
from lcq_mmdet.quantization.calibration import input_name, observe
from lcq_mmdet.quantization.layers import lcq_layers
from lcq_mmdet.quantization.quantizer import LCQQuantizer

from .runs import forward_test_images

_SIDE = 384
_SCORE_THR = 0.3


def plot_compander(ax: Axes, quantizer: LCQQuantizer, x: Tensor) -> None:
    """Plot the compander and its levels over a histogram of magnitudes.

    Args:
        ax: Where to plot.
        quantizer: An initialized quantizer.
        x: Samples of what it quantizes, any shape; a weight as it is.
    """
    quantizer, x = deepcopy(quantizer).cpu(), x.cpu()
    with torch.no_grad():
        magnitude = quantizer.magnitude(x).flatten()
        v = torch.linspace(0, 1, 257)
        f = compress(v, quantizer.theta)
        values = quantizer.levels()
    # Zeros are met exactly and would hide the rest.
    magnitude = magnitude[magnitude != 0]
    ends = (-0.25 if (magnitude < 0).any() else 0, 1.25)
    ax.hist(magnitude.numpy(), bins=60, range=ends, density=True, color='.8')
    ax.set(xlim=ends, yticks=[])
    ax.vlines(values.numpy(), 0, ax.get_ylim()[1], color='C0', lw=1)
    companding = ax.twinx()
    companding.plot(v, f, color='C3', lw=2)
    companding.plot([0, 1], [0, 1], color='C3', lw=0.8, ls=':')
    companding.set(ylim=(0, 1.05), yticks=[0, 1])


def plot_levels(runner: Runner, path: str, num_layers: int = 4) -> None:
    """Draw the companders of layers spread over the model.

    Args:
        runner: A runner with a quantized model and test data.
        path: Picture to write; the ending is the format.
        num_layers: Number of layers, at least 1.
    """
    model = unwrap(runner.model)
    layers = dict(lcq_layers(model))
    last = len(layers) - 1
    names = [
        list(layers)[i]
        for i in np.linspace(min(1, last), last, num_layers).astype(int)
    ]
    with observe(model) as observations:
        forward_test_images(runner)

    figure = Figure(figsize=(3.2 * num_layers, 5), layout='constrained')
    for column, axes in enumerate(
            figure.subplots(2, num_layers, squeeze=False).T):
        name = names[column]
        layer = layers[name]
        plot_compander(axes[0], layer.weight_quantizer, layer.weight.detach())
        # Of a layer with many the one of the largest level.
        key, quantizer = next(layer.quantizers())
        plot_compander(axes[1], quantizer,
                       observations[input_name(name, key)].samples())
        axes[0].set_title(name, fontsize=9)
        axes[0].set_xlabel(_describe('weight', layer.weight_quantizer))
        axes[1].set_xlabel(_describe('input', quantizer))
    figure.legend(
        handles=[
            figure.axes[0].collections[0], *figure.axes[-1].lines,
            figure.axes[0].patches[0]
        ],
        labels=['levels', 'learned compander f', 'uniform', 'histogram'],
        loc='outside lower center',
        ncols=4)
    figure.savefig(path, dpi=110)


def _describe(what: str, quantizer: LCQQuantizer) -> str:
    if quantizer.is_symmetric:
        what = f'|{what}|'
    elif quantizer.lowest is not None:
        what = f'({what} - offset)'
    return f'{what} / clip, {quantizer.num_levels} levels'


def plot_detections(runners: Dict[str, Runner],
                    path: str,
                    num_images: int = 5) -> None:
    """Draw ground truth and each run's detections on the same test images.

    Detections with a score of 0.3 and more are drawn.

    Args:
        runners: Runners with the same test data, by the name to show.
        path: Picture to write; the ending is the format.
        num_images: Number of images, at least 1.
    """
    first = next(iter(runners.values()))
    dataset = first.test_dataloader.dataset
    visualizer = VISUALIZERS.build(
        dict(type='DetLocalVisualizer', name='lcq_report'))
    visualizer.dataset_meta = dataset.metainfo
    indices = np.linspace(
        0, len(dataset) - 1, min(num_images, len(dataset))).astype(int)

    figure = Figure(
        figsize=(2.6 * len(indices), 2.7 * (1 + len(runners))),
        layout='constrained')
    rows = figure.subplots(1 + len(runners), len(indices), squeeze=False)
    for column, index in enumerate(indices):
        image, truth = _load(dataset[index])
        pictures = {'ground truth': (truth, True)}
        for name, runner in runners.items():
            data = pseudo_collate([dataset[index]])
            with torch.no_grad():
                model: Any = unwrap(runner.model)
                found = model.test_step(data)[0]
            pictures[name] = (found, False)
        for ax, (name, (sample, is_truth)) in zip(rows[:, column],
                                                  pictures.items()):
            visualizer.add_datasample(
                name,
                *_enlarge(image, sample, is_truth),
                draw_gt=is_truth,
                draw_pred=not is_truth,
                pred_score_thr=_SCORE_THR)
            ax.imshow(visualizer.get_image())
            ax.set(xticks=[], yticks=[])
            if not column:
                ax.set_ylabel(name)
    figure.savefig(path, dpi=110)


def _load(data: dict) -> Tuple[np.ndarray, DetDataSample]:
    sample = data['data_samples']
    return mmcv.imread(sample.img_path, channel_order='rgb'), sample


def _enlarge(image: np.ndarray, sample: DetDataSample,
             is_truth: bool) -> Tuple[np.ndarray, DetDataSample]:
    """Scale a small image and its boxes up, so that labels fit."""
    enlarged = mmcv.imrescale(image, (_SIDE, _SIDE))
    scale = enlarged.shape[1] / image.shape[1]
    sample = sample.cpu().clone()
    if is_truth:
        # Predictions come in pixels of the file, annotations of the input.
        width, height = sample.scale_factor
        sample.gt_instances.bboxes = scale_boxes(
            get_box_tensor(sample.gt_instances.bboxes),
            (scale / width, scale / height))
    else:
        sample.pred_instances.bboxes = scale_boxes(
            sample.pred_instances.bboxes, (scale, scale))
    return enlarged, sample
