_base_ = './retinanet_r18_lcq_4bit_toy.py'

model = dict(bits=3)
