_base_ = './faster-rcnn_r18_lcq_4bit_bccd.py'

model = dict(bits=3)
