_base_ = './faster-rcnn_r18_fpn_toy.py'

model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
