_base_ = [
    '../_base_/models/retinanet_r18_fpn_bccd.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/lcq_adamw_4e.py', '../_base_/seeded_runtime.py'
]

model = dict(type='LCQModel', float_type=_base_.model.type, bits=2)
default_hooks = dict(
    lcq=dict(type='LCQHook'), lcq_distill=dict(type='LCQDistillHook'))
load_from = 'work_dirs/retinanet_r18_bccd/epoch_10.pth'
