"""One process as a launcher starts it, with NCCL on the GPU."""
import os
from pathlib import Path

import torch
from test_distributed import launch
from training import assert_equal_states, make_config, state_of, train

RANK = '''
import sys

import torch

sys.path.insert(0, sys.argv[1])
from training import make_config, train

device = sys.argv[2]
options = dict(device_ids=None) if device == 'cpu' else {}
if device == 'cpu':
    torch.cuda.set_device = lambda device: None
cfg = make_config(
    'rank', load_from='calibrated.pth', launcher='pytorch',
    env_cfg=dict(dist_cfg=dict(
        backend='gloo' if device == 'cpu' else 'nccl', timeout=60)),
    model_wrapper_cfg=dict(type='MMDistributedDataParallel', **options),
    **{'model.batch_norm': False})
torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.deterministic = True
runner = train(cfg)
assert torch.distributed.get_backend() == cfg.env_cfg.dist_cfg.backend
assert next(runner.model.parameters()).device.type == device
torch.save(runner.model.module.state_dict(), 'rank.pth')
'''


def test_one_rank_learns_what_a_process_alone_does(device, tmp_path):
    no_norm = {'model.batch_norm': False}
    train(make_config(tmp_path / 'calibrated', **no_norm, **{
        'optim_wrapper.optimizer.lr': 0.,
        'train_cfg.max_epochs': 1
    }))
    start = tmp_path / 'calibrated.pth'
    os.rename(tmp_path / 'calibrated/epoch_1.pth', start)
    alone = train(make_config(
        tmp_path / 'alone', load_from=str(start), **no_norm))
    (tmp_path / 'rank.py').write_text(RANK)
    result = launch([str(Path(__file__).parents[1]), device], tmp_path,
                    processes=1)
    assert result.returncode == 0, result.stderr[-5000:]
    state = torch.load(tmp_path / 'rank.pth', map_location=device)
    assert not torch.equal(state['fc.weight'].cpu(),
                           state_of(start)['fc.weight'].cpu())
    assert_equal_states(state, alone.model.state_dict(), rtol=1e-3, atol=1e-5)
