# All of the detector, as a device runs it.
_base_ = './faster-rcnn_r18_lcq_2bit_bccd.py'

model = dict(modules=['backbone', 'neck', 'rpn_head', 'roi_head'])
