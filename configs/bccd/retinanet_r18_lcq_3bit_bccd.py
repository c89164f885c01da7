_base_ = './retinanet_r18_lcq_4bit_bccd.py'

model = dict(bits=3)
