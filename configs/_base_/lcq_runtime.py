_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(imports=['lcq_mmdet'], allow_failed_imports=False)
default_hooks = dict(lcq=dict(type='LCQHook'))
