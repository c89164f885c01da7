_base_ = './retinanet_lcq_4bit.py'

model = dict(bits=3)
