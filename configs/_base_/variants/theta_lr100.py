optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'_quantizer.theta': dict(lr_mult=100)}))
