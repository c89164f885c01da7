_base_ = './retinanet_r18_fpn_toy.py'

model = dict(bbox_head=dict(num_classes=3))
