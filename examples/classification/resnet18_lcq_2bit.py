_base_ = './resnet18_float.py'
custom_imports = dict(
    imports=['stripes', 'lcq_mmdet'], allow_failed_imports=False)
model = dict(
    type='LCQModel',
    float_type=_base_.model.type,
    bits=2,
    modules=['backbone', 'head'])
default_hooks = dict(lcq=dict(type='LCQHook'))
optim_wrapper = dict(constructor='LCQOptimWrapperConstructor')
load_from = 'work_dirs/resnet18_float/epoch_6.pth'
