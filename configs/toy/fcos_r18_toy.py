_base_ = [
    '../_base_/models/retinanet_r18_fpn_toy.py',
    '../_base_/datasets/toy_coco_detection.py',
    '../_base_/schedules/adamw_12e.py', '../_base_/seeded_runtime.py'
]

model = dict(
    type='FCOS',
    bbox_head=dict(
        _delete_=True,
        type='FCOSHead',
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        strides=[8, 16, 32, 64, 128],
        regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 256), (256, 1e8)),
        center_sampling=True,
        norm_on_bbox=True,
        centerness_on_reg=True,
        norm_cfg=dict(type='BN'),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0)))
