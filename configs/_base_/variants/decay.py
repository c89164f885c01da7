optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            '_quantizer.': dict(decay_mult=1),
            '_quantizer.theta': dict(decay_mult=1)
        }))
