custom_imports = dict(imports=['stripes'], allow_failed_imports=False)
model = dict(type='ResNetClassifier')
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    dataset=dict(type='StripesDataset', num_images=256),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'))
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(type='StripesDataset', num_images=128, seed=1),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'))
test_dataloader = val_dataloader
train_cfg = dict(by_epoch=True, max_epochs=6, val_interval=6)
val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type='ShareCorrect')
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-2, weight_decay=1e-4))
param_scheduler = dict(type='CosineAnnealingLR', T_max=6, by_epoch=True)
randomness = dict(seed=0)
default_scope = 'mmengine'
