"""Stripes to tell apart by their direction, and a ResNet that does."""
from typing import Any, Dict, Sequence

import numpy as np
import torch
from mmdet.models import ResNet
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 4


@DATASETS.register_module()
class StripesDataset:
    """Noisy stripes in one of four directions, generated in memory.

    Args:
        num_images: Number of images.
        size: Height and width in pixels.
        seed: Another one gives other images.
    """

    def __init__(self, num_images: int, size: int = 32, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:size, :size]
        self.labels = np.arange(num_images) % NUM_CLASSES
        angles = self.labels * np.pi / NUM_CLASSES
        angles = angles + rng.uniform(-0.2, 0.2, num_images)
        across = (
            np.cos(angles)[:, None, None] * x +
            np.sin(angles)[:, None, None] * y)
        lengths = rng.uniform(6, 9, (num_images, 1, 1))
        phases = rng.uniform(0, 2 * np.pi, (num_images, 1, 1))
        stripes = np.sin(2 * np.pi * across / lengths + phases)
        colors = rng.uniform(0.5, 1, (num_images, 3, 1, 1))
        noise = rng.normal(0, 0.2, (num_images, 3, size, size))
        self.images = (colors * stripes[:, None] + noise).astype(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        return dict(
            inputs=torch.from_numpy(self.images[index]),
            labels=int(self.labels[index]))


@MODELS.register_module()
class ResNetClassifier(BaseModel):
    """Half a ResNet backbone, the mean over positions, and a linear layer.

    Args:
        depth: Depth of the ResNet, 18 or 34.
        base_channels: Channels of its first stage.
    """

    def __init__(self, depth: int = 18, base_channels: int = 8) -> None:
        super().__init__()
        self.backbone = ResNet(
            depth,
            base_channels=base_channels,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(1, ),
            norm_eval=False)
        self.head = nn.Sequential(nn.Linear(2 * base_channels, NUM_CLASSES))

    def forward(self, inputs: Tensor, labels: Tensor,
                mode: str = 'tensor') -> Any:
        """Compute scores, (N, 4), a loss or a list of correct answers."""
        scores = self.head(self.backbone(inputs)[0].mean((2, 3)))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(scores, labels))
        if mode == 'predict':
            return (scores.argmax(1) == labels).tolist()
        return scores


@METRICS.register_module()
class ShareCorrect(BaseMetric):
    """Accuracy, [0, 1]."""

    def process(self, data_batch: Any, data_samples: Sequence[bool]) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: Sequence[bool]) -> Dict[str, float]:
        return dict(accuracy=sum(results) / len(results))
