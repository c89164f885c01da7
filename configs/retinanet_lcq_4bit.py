_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['lcq_mmdet'], allow_failed_imports=False)

model = dict(
    type='LCQModel',
    float_type=_base_.model.type,
    bits=4,
    backbone=dict(init_cfg=None))
default_hooks = dict(lcq=dict(type='LCQHook'))

train_cfg = dict(max_epochs=16)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.001,
        end=1,
        convert_to_iter_based=True),
    dict(type='MultiStepLR', end=16, milestones=[8, 14], gamma=0.1)
]
optim_wrapper = dict(
    optimizer=dict(lr=0.001),
    clip_grad=dict(max_norm=6),
    paramwise_cfg=dict(
        custom_keys={
            '_quantizer.': dict(decay_mult=0),
            '_quantizer.theta': dict(lr_mult=10, decay_mult=0)
        }))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'  # noqa: E501
