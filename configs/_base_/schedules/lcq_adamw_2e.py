max_epochs = 2
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# Not OneCycleLR, which would override lr_mult.
param_scheduler = dict(
    type='CosineAnnealingLR',
    T_max=max_epochs,
    eta_min_ratio=0.01,
    convert_to_iter_based=True)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='LCQOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10))
