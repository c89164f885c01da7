"""Two processes on the CPU, as a launcher starts them."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from training import assert_equal_states, make_config, state_of, train

ROOT = Path(__file__).parents[1]
# A rank that does without the GPU that mmengine's launcher asks for, takes few
# steps, would calibrate on images of its own, and notes what it writes.
RANK = '''
import os
import runpy
import sys
from pathlib import Path

import torch
from mmengine.runner import Runner

from lcq_mmdet.hooks import lcq_hook
from lcq_mmdet.studies import measuring

torch.cuda.set_device = lambda device: None
rank = os.environ['RANK']
lcq_hook._SEED, measuring._FLOAT_ITERS = int(rank), 2
replace, train = os.replace, Runner.train


def note_and_replace(source, target):
    if 'sweep' in str(target):
        with open(f'written_by_{rank}', 'a') as file:
            file.write(Path(target).name + ' ')
    replace(source, target)


def train_and_save(self):
    train(self)
    state = self.model.module.state_dict()
    torch.save(state, Path(self.work_dir, f'rank_{rank}.pth'))


os.replace, Runner.train = note_and_replace, train_and_save
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def launch(arguments, folder, processes=2):
    """Start processes of the folder's rank.py."""
    return subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node',
         str(processes), '--master-addr', '127.0.0.1', '--master-port',
         str(free_port()), 'rank.py', *arguments],
        cwd=folder,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        timeout=200)


def test_two_ranks_learn_the_same_and_write_one_report(
        tiny_config, float_checkpoint, tmp_path):
    tiny_config.pop('work_dir')
    tiny_config.merge_from_dict({
        'load_from': float_checkpoint,
        'train_cfg.max_epochs': 1,
        'train_dataloader.num_workers': 0,
        'train_dataloader.dataset.pipeline.2.scale': (64, 64),
        'val_dataloader.num_workers': 0,
        'val_dataloader.dataset.pipeline.1.scale': (64, 64),
        'test_dataloader.num_workers': 0,
        'test_dataloader.dataset.pipeline.1.scale': (64, 64),
        'env_cfg.dist_cfg': dict(backend='gloo', timeout=60),
        'model_wrapper_cfg': dict(
            type='MMDistributedDataParallel', device_ids=None,
            broadcast_buffers=False),
    })
    tiny_config.dump(tmp_path / 'tiny.py')
    (tmp_path / 'rank.py').write_text(RANK)
    result = launch(
        [str(ROOT / 'tools' / 'sweep.py'), 'tiny.py', '--bits', '4',
         '--work-dir', 'sweep', '--launcher', 'pytorch'], tmp_path)
    assert result.returncode == 0, result.stderr[-5000:]

    folder = tmp_path / 'sweep'
    states = [torch.load(folder / f'lcq_w4a4_seed0/rank_{rank}.pth')
              for rank in range(2)]
    keys = [key for key in states[0] if '_quantizer.' in key]
    assert len(keys) > 200
    for key in keys:
        assert torch.equal(states[0][key], states[1][key]), key
    start = torch.load(float_checkpoint)['state_dict']
    for key in ('backbone.conv1.weight', 'neck.lateral_convs.0.conv.weight'):
        assert torch.equal(states[0][key], states[1][key])
        assert not torch.equal(states[0][key], start[key])
    # In training, too, each rank saw images of its own.
    key = 'backbone.bn1.running_mean'
    assert not torch.equal(states[0][key], states[1][key])

    rows = json.loads((folder / 'report.json').read_text())['rows']
    assert [row['name'] for row in rows] == [
        'float', 'lcq, calibrated', 'lcq, fine-tuned'
    ]
    assert not any('error' in row for row in rows)
    assert not (tmp_path / 'written_by_1').exists()
    written = (tmp_path / 'written_by_0').read_text().split()
    assert written.count('sweep.json') == 1 and written.count('row.json') == 3
    assert (folder / 'levels.png').stat().st_size > 10000
    assert list(folder.glob('lcq_w4a4_seed0/*/vis_data/scalars.json'))


# Training of the tiny classifier on one rank, which notes its weights.
CLASSIFIER = '''
import os
import sys

import torch

sys.path.insert(0, sys.argv[1])
from training import make_config, train

rank, world = os.environ['RANK'], int(os.environ['WORLD_SIZE'])
torch.cuda.set_device = lambda device: None
cfg = make_config(
    'ranks', load_from='calibrated.pth', launcher='pytorch',
    env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=60)),
    model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None),
    **{
        'model.batch_norm': False,
        'default_hooks.lcq_dampening.type': 'LCQDampeningHook',
        'train_dataloader.batch_size': 8 // world
    })
runner = train(cfg)
assert runner.world_size == 2
torch.save(runner.model.module.state_dict(), f'rank_{rank}.pth')
'''


def test_two_ranks_learn_what_one_does_with_the_same_batch(tmp_path):
    no_norm = {'model.batch_norm': False}
    calibrated = make_config(tmp_path / 'calibrated', **no_norm, **{
        'optim_wrapper.optimizer.lr': 0.,
        'train_cfg.max_epochs': 1
    })
    train(calibrated)
    os.rename(tmp_path / 'calibrated/epoch_1.pth', tmp_path / 'calibrated.pth')
    runner = train(make_config(
        tmp_path / 'one', load_from=str(tmp_path / 'calibrated.pth'),
        **no_norm,
        **{'default_hooks.lcq_dampening.type': 'LCQDampeningHook'}))
    (tmp_path / 'rank.py').write_text(CLASSIFIER)
    result = launch([str(Path(__file__).parent)], tmp_path)
    assert result.returncode == 0, result.stderr[-5000:]
    states = [torch.load(tmp_path / f'rank_{rank}.pth') for rank in range(2)]
    assert_equal_states(*states)
    start = state_of(tmp_path / 'calibrated.pth')
    assert not torch.equal(states[0]['fc.weight'], start['fc.weight'])
    # Sums in another order; a value near a border may take the other level.
    assert_equal_states(states[0], runner.model.state_dict(), rtol=1e-3,
                        atol=1e-5)
