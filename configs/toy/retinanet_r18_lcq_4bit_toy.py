_base_ = './retinanet_r18_toy.py'

model = dict(type='LCQModel', float_type=_base_.model.type, bits=4)
default_hooks = dict(lcq=dict(type='LCQHook'))

max_epochs = 2
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# Not OneCycleLR, which would override lr_mult.
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min_ratio=0.01,
        convert_to_iter_based=True)
]
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(
        custom_keys={
            '_quantizer.': dict(decay_mult=0),
            '_quantizer.theta': dict(lr_mult=10, decay_mult=0)
        }))
load_from = 'work_dirs/retinanet_r18_toy/epoch_6.pth'
