"""A tiny model that is no detector, and the config of its training."""
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lcq_mmdet import apply_lcq


@MODELS.register_module(force=True)
class TinyClassifier(BaseModel):
    """Three convolutions of 8 x 8 images into three classes."""

    def __init__(self, with_cp=False, batch_norm=True, nan_after=None):
        super().__init__()
        self.with_cp = with_cp
        self.nan_after = nan_after
        self.backbone = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, 4, 3, padding=1),
                nn.BatchNorm2d(4) if batch_norm else nn.Identity(), nn.ReLU())
            for inputs in (3, 4, 4))
        self.fc = nn.Linear(4, 3)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = inputs
        for block in self.backbone:
            x = (checkpoint(block, x, use_reentrant=False)
                 if self.with_cp else block(x))
        scores = self.fc(x.mean((2, 3)))
        if mode != 'loss':
            return scores
        loss = F.cross_entropy(scores, labels)
        if self.nan_after is not None:
            self.nan_after -= 1
            if self.nan_after < 0:
                loss = loss * float('nan')
        return dict(loss=loss)


@DATASETS.register_module(force=True)
class TinyDataset:
    """Images whose class is the channel that is brightest."""

    def __init__(self, num_images=32):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(num_images, 3, 8, 8, generator=generator)
        self.labels = torch.arange(num_images) % 3
        for image, label in zip(self.images, self.labels):
            image[label] += 1

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return dict(inputs=self.images[index], labels=self.labels[index])


def make_config(work_dir, **changes):
    """Two epochs of four iterations at 4 bits; a checkpoint after each."""
    cfg = Config(
        dict(
            model=dict(type='TinyClassifier'),
            train_dataloader=dict(
                batch_size=8,
                num_workers=0,
                dataset=dict(type='TinyDataset'),
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=True)),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            randomness=dict(seed=0),
            default_scope='mmengine',
            log_level='ERROR',
            work_dir=str(work_dir),
            visualizer=dict(type='Visualizer', name=str(work_dir)),
            experiment_name=str(work_dir).replace('/', '_')))
    cfg = apply_lcq(cfg, bits=4, init='mse')
    cfg.default_hooks.lcq.update(require_float=False, num_batches=2)
    cfg.merge_from_dict(changes)
    return cfg


def train(cfg):
    """Train in this process and return the runner."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def load(path):
    """Load a checkpoint, which has more than tensors in it."""
    return torch.load(path, weights_only=False)


def state_of(path):
    return load(path)['state_dict']


def assert_equal_states(one, other, **tolerances):
    """Compare two state dicts, exactly unless there are tolerances."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if tolerances and value.is_floating_point():
            torch.testing.assert_close(
                value, other[key], **tolerances,
                msg=lambda text, key=key: f'{key}: {text}')
        else:
            assert torch.equal(value, other[key]), key
