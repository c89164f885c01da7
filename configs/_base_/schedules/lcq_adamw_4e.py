# At 2 bits the weights have farther to go.
_base_ = './lcq_adamw_2e.py'

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = dict(T_max=max_epochs)
