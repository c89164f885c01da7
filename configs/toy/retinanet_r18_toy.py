_base_ = [
    '../_base_/models/retinanet_r18_fpn_toy.py',
    '../_base_/datasets/toy_coco_detection.py',
    '../_base_/schedules/adamw_12e.py', '../_base_/seeded_runtime.py'
]
