_base_ = [
    './_base_/models/retinanet_r50_fpn_lcq.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './_base_/schedules/lcq_18e.py', './_base_/lcq_runtime.py'
]

model = dict(bits=2)
default_hooks = dict(lcq_distill=dict(type='LCQDistillHook'))
load_from = _base_.float_checkpoint
