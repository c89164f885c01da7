max_epochs = 16
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, end=1,
        convert_to_iter_based=True),
    dict(
        type='MultiStepLR', end=max_epochs, milestones=[8, 14], gamma=0.1)
]
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='LCQOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=0.0001),
    clip_grad=dict(max_norm=6))
# lr is for 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)
