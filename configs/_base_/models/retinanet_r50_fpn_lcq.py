_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    type='LCQModel',
    float_type=_base_.model.type,
    backbone=dict(init_cfg=None))
float_checkpoint = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'  # noqa: E501
