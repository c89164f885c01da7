optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'_quantizer.clip': dict(lr_mult=10, decay_mult=0)}))
