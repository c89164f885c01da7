_base_ = './faster-rcnn_r18_lcq_4bit_toy.py'

model = dict(bits=3)
