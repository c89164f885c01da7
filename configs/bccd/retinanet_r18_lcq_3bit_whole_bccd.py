# All of the detector, as a device runs it.
_base_ = './retinanet_r18_lcq_3bit_bccd.py'

model = dict(modules=['backbone', 'neck', 'bbox_head'])
