# At 2 bits the weights have farther to go.
_base_ = './lcq_16e.py'

max_epochs = 18
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, end=1,
        convert_to_iter_based=True),
    dict(
        type='MultiStepLR', end=max_epochs, milestones=[9, 14, 17], gamma=0.1)
]
optim_wrapper = dict(optimizer=dict(lr=0.01))
