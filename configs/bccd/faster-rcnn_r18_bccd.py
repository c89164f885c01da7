_base_ = [
    '../_base_/models/faster-rcnn_r18_fpn_bccd.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/adamw_10e.py', '../_base_/seeded_runtime.py'
]
