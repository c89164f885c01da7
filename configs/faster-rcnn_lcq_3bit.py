_base_ = './faster-rcnn_lcq_4bit.py'

model = dict(bits=3)
