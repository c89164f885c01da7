_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(
    imports=['lcq_mmdet', 'lcq_mmdet.datasets'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
