"""The monitor in real runs on generated data, and alone on a small model."""
import copy
import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from training import load

from lcq_mmdet import LCQConv2d, LCQError, LCQQuantizer, apply_lcq
from lcq_mmdet.conversion.model import float_config
from lcq_mmdet.functional import KERNELS
from lcq_mmdet.hooks import LCQMonitorHook, monitor_hook
from lcq_mmdet.quantization.layers import lcq_layers
from lcq_mmdet.report.statistics import QuantizerStatistics

ONE_EPOCH = {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 9}
KEYS = {'clip', 'max_slope', 'min_slope', 'error', 'level_use', 'clipped'}


class Net(nn.Module):
    """A quantized convolution, and one that is shared by two scales."""

    def __init__(self, checkpointed=None):
        super().__init__()
        self.stem = LCQConv2d(3, 4, 3, stride=2)
        self.head = LCQConv2d(4, 4, 3)
        self.checkpointed = checkpointed
        for layer, signed in ((self.stem, True), (self.head, False)):
            layer.act_quantizer.initialize_(
                torch.randn(99) if signed else torch.rand(99), signed)
            layer.weight_quantizer.initialize_(layer.weight, True)

    def scales(self, x):
        x = self.stem(x).relu()
        return self.head(x).sum() + self.head(x[..., ::2, ::2]).sum()

    def forward(self, x):
        if self.checkpointed is None:
            return self.scales(x)
        return checkpoint(self.scales, x, **self.checkpointed)


def make_runner(model):
    return Mock(model=model, iter=0)


def step(hook, runner, x, observed=lambda: None):
    """What a training loop does in an iteration."""
    hook.before_train_iter(runner, runner.iter, x)
    runner.model.zero_grad()
    runner.model(x).backward()
    observed()
    hook.after_train_iter(runner, runner.iter, x)
    runner.iter += 1


def logged(runner):
    """The scalars that the visualizer got, by step."""
    return {
        call.kwargs['step']: call.args[0]
        for call in runner.visualizer.add_scalars.call_args_list
    }


def num_hooks(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks)
        for m in model.modules())


def train(cfg, monitor=None, **options):
    cfg = copy.deepcopy(cfg)
    if monitor is not None:
        cfg.default_hooks.lcq_monitor = dict(type='LCQMonitorHook', **monitor)
    cfg.merge_from_dict(options)
    # mmengine keeps one visualizer of a name in a process.
    cfg.visualizer.name = cfg.work_dir
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def records_of(runner, prefix='lcq/'):
    """The lines of scalars.json that have such scalars, by step."""
    path = next(Path(runner.work_dir).glob('*/vis_data/scalars.json'))
    lines = map(json.loads, path.read_text().splitlines())
    return {
        line.pop('step'): line
        for line in lines if any(key.startswith(prefix) for key in line)
    }


def test_real_run_logs_every_quantizer(lcq_config):
    runner = train(lcq_config, dict(interval=3))
    records = records_of(runner)
    # 32 images in batches of 8, twice.
    assert list(records) == [3, 6]
    names = {
        f'lcq/{name}.{child}/{key}'
        for name, layer in lcq_layers(runner.model)
        for child in ('act_quantizer', 'weight_quantizer')
        for key in KEYS | ({'offset'} if getattr(layer, child).is_signed else
                           set())
    }
    for record in records.values():
        assert record.keys() == names
        for name, value in record.items():
            if name.endswith(('/clipped', '/level_use', '/min_slope')):
                assert 0 <= value <= 1, name
            elif not name.endswith('/offset'):
                assert value >= 0, name
    clips = [
        record['lcq/neck.lateral_convs.0.conv.act_quantizer/clip']
        for record in records.values()
    ]
    assert clips[0] != clips[1]
    assert num_hooks(runner.model) == 0


def test_step_is_that_of_the_logger_hook(lcq_config):
    runner = train(lcq_config, dict(interval=2), **ONE_EPOCH,
                   **{'default_hooks.logger.interval': 2})
    assert list(records_of(runner)) == [2, 4]
    assert list(records_of(runner, 'loss')) == [2, 4]


def test_training_is_the_same_with_and_without(lcq_config, tmp_path):
    states = []
    for name, monitor in (('with', dict(interval=1)), ('without', None)):
        runner = train(lcq_config, monitor, work_dir=str(tmp_path / name),
                       **ONE_EPOCH)
        assert list(records_of(runner)) == ([1, 2, 3, 4] if monitor else [])
        states.append(load(tmp_path / name / 'epoch_1.pth'))
    one, other = states
    assert one['state_dict'].keys() == other['state_dict'].keys()
    for key, value in one['state_dict'].items():
        assert torch.equal(value, other['state_dict'][key]), key
    one, other = (s['optimizer']['state'] for s in states)
    assert len(one) == len(other) > 0
    for key in one:
        assert torch.equal(one[key]['exp_avg'], other[key]['exp_avg'])


def test_tensorboard_gets_the_scalars(lcq_config):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import \
        EventAccumulator
    lcq_config.visualizer.vis_backends = [
        dict(type='LocalVisBackend'),
        dict(type='TensorboardVisBackend')
    ]
    runner = train(lcq_config, dict(interval=2, layers=['backbone.conv1']),
                   **ONE_EPOCH)
    events = next(Path(runner.work_dir).glob('*/vis_data/events.out*'))
    accumulator = EventAccumulator(str(events)).Reload()
    tags = [t for t in accumulator.Tags()['scalars'] if t.startswith('lcq/')]
    records = records_of(runner)
    assert records.keys() == {2, 4} and set(tags) == records[4].keys()
    for tag in tags:
        for event in accumulator.Scalars(tag):
            assert event.value == pytest.approx(records[event.step][tag])


def test_scalars_are_of_the_quantizers_input_before_the_step():
    model = Net()
    runner, hook = make_runner(model), LCQMonitorHook(interval=1)
    x = torch.randn(2, 3, 16, 16)
    quantizer = model.stem.act_quantizer
    with torch.no_grad():
        y = quantizer(x)
        lowest = quantizer.offset
        outside = (x < lowest) | (x > lowest + quantizer.clip)
        _, counts = y.unique(return_counts=True)
        shares = counts / counts.sum()
        expected = dict(
            clip=quantizer.clip.item(),
            offset=quantizer.offset.item(),
            error=((y - x).norm() / x.norm()).item()**2,
            level_use=shares.pow(-shares).prod().item() / 16,
            clipped=outside.float().mean().item())
    step(hook, runner, x, lambda: quantizer.clip.data.add_(1))
    hook.after_train_epoch(runner)
    scalars = logged(runner)[1]
    assert {
        key: scalars[f'lcq/stem.act_quantizer/{key}']
        for key in expected
    } == pytest.approx(expected, rel=1e-4)


def test_shared_layer_counts_all_its_calls():
    model = Net()
    runner, hook = make_runner(model), LCQMonitorHook(interval=1)
    x = torch.randn(2, 3, 32, 32)
    step(hook, runner, x)
    hook.after_train_epoch(runner)
    with torch.no_grad():
        one = model.stem(x).relu()
        inputs = torch.cat([one.flatten(), one[..., ::2, ::2].flatten()])
        clipped = (inputs > model.head.act_quantizer.clip).float().mean()
    assert 0 < clipped < 1
    assert logged(runner)[1]['lcq/head.act_quantizer/clipped'] == (
        pytest.approx(clipped.item()))


def test_no_random_number_is_drawn():
    runner, hook = make_runner(Net()), LCQMonitorHook(interval=1)
    x = torch.randn(1, 3, 512, 512)
    state = torch.get_rng_state()
    step(hook, runner, x)
    hook.after_train_epoch(runner)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(logged(runner)) == [1]


def test_nothing_is_logged_before_the_next_interval_or_the_epochs_end():
    runner, hook = make_runner(Net()), LCQMonitorHook(interval=3)
    seen = []
    for _ in range(7):
        step(hook, runner, torch.randn(1, 3, 16, 16))
        seen.append(list(logged(runner)))
    assert seen == [[], [], [], [], [], [3], [3]]
    hook.after_train_epoch(runner)
    assert list(logged(runner)) == [3, 6]
    hook.after_train_epoch(runner)
    assert runner.visualizer.add_scalars.call_count == 2


def test_hooks_are_there_for_the_observed_iteration_alone():
    model = Net()
    runner, hook = make_runner(model), LCQMonitorHook(interval=2)
    counts = []
    for _ in range(4):
        hook.before_train_iter(runner, runner.iter)
        counts.append(num_hooks(model))
        hook.after_train_iter(runner, runner.iter)
        counts.append(num_hooks(model))
        runner.iter += 1
    # Four quantizers and the model.
    assert counts == [0, 0, 5, 0, 0, 0, 5, 0]


def test_iteration_without_forward_logs_nothing():
    runner, hook = make_runner(Net()), LCQMonitorHook(interval=1)
    hook.before_train_iter(runner, 0)
    hook.after_train_iter(runner, 0)
    hook.after_train_epoch(runner)
    assert not logged(runner)


class RefuseToWait(TorchDispatchMode):
    """Refuse the operations that make a host wait for its device."""
    WAITING = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'equal',
               'masked_select', 'bincount', 'unique', '_unique2')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.WAITING:
            raise RuntimeError(f'{func} waits')
        return func(*args, **(kwargs or {}))


def test_step_does_not_wait_and_logging_does(monkeypatch):
    # The CPU kernel may read values on the host, where they are.
    monkeypatch.delitem(KERNELS, 'cpu', raising=False)
    runner, hook = make_runner(Net()), LCQMonitorHook(interval=1)
    x = torch.randn(1, 3, 16, 16)

    def wait(tensor):
        raise RuntimeError('tolist waits')

    for method in ('tolist', 'numpy', 'cpu'):
        monkeypatch.setattr(torch.Tensor, method, wait)
    with RefuseToWait():
        step(hook, runner, x)
        with pytest.raises(RuntimeError, match='waits'):
            hook.after_train_epoch(runner)
        with pytest.raises(RuntimeError, match='waits'):
            x.sum().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_step_does_not_wait_for_a_gpu():
    runner = make_runner(Net().cuda())
    hook = LCQMonitorHook(interval=2)
    x = torch.randn(1, 3, 16, 16).cuda()
    for _ in range(3):
        step(hook, runner, x)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode('error')
        step(hook, runner, x)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert hook._measured._values.is_pinned()
    hook.after_train_epoch(runner)
    assert list(logged(runner)) == [2, 4]


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_recomputation_is_left_out(use_reentrant, monkeypatch):
    calls = {}

    def count(owner, name):
        original = getattr(owner, name)

        def counting(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    model = Net(dict(use_reentrant=use_reentrant))
    count(QuantizerStatistics, 'update')
    count(LCQQuantizer, 'forward')
    runner, hook = make_runner(model), LCQMonitorHook(interval=1)
    calls.update(update=0, forward=0)
    step(hook, runner, torch.randn(1, 3, 16, 16).requires_grad_())
    # Two quantizers of the stem and twice those of the head, each also when
    # it is recomputed.
    assert calls == dict(update=6, forward=12)


def test_other_processes_do_no_work(monkeypatch):
    monkeypatch.setattr(monitor_hook, 'is_main_process', lambda: False)
    model = Net()
    runner, hook = make_runner(model), LCQMonitorHook(interval=1)
    monkeypatch.setattr(QuantizerStatistics, 'update', None)
    hook.before_train_iter(runner, 0)
    assert num_hooks(model) == 0
    model(torch.randn(1, 3, 16, 16))
    hook.after_train_iter(runner, 0)
    hook.after_train_epoch(runner)
    assert not logged(runner)


def test_wrapped_model_is_observed(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = Net()
        runner = make_runner(MMDistributedDataParallel(model))
        hook = LCQMonitorHook(interval=1)
        hook.before_run(runner)
        step(hook, runner, torch.randn(1, 3, 16, 16))
        hook.after_train_epoch(runner)
    finally:
        torch.distributed.destroy_process_group()
    assert 'lcq/stem.weight_quantizer/clip' in logged(runner)[1]


def test_layers_are_selected_by_pattern():
    runner = make_runner(Net())
    hook = LCQMonitorHook(interval=1, layers=['he*'])
    hook.before_run(runner)
    step(hook, runner, torch.randn(1, 3, 16, 16))
    hook.after_train_epoch(runner)
    names = {name.rpartition('/')[0] for name in logged(runner)[1]}
    assert names == {'lcq/head.act_quantizer', 'lcq/head.weight_quantizer'}


@pytest.mark.parametrize('interval', [0, -1, 1.5, '50', None])
def test_interval_is_checked(interval):
    with pytest.raises(LCQError, match=f'lcq_monitor.interval={interval!r}: '
                       'must be an integer of 1 or more'):
        LCQMonitorHook(interval=interval)


@pytest.mark.parametrize('layers, message', [
    (['head', 'stme'], "'stme' matches no layer; did you mean 'stem'"),
    ('head', "layers='head': must be a list"),
])
def test_patterns_are_checked_before_the_run(layers, message):
    hook = LCQMonitorHook(layers=layers)
    with pytest.raises(LCQError, match=message) as info:
        hook.before_run(make_runner(Net()))
    assert str(info.value).startswith('default_hooks.lcq_monitor.layers')


def test_float_model_is_refused():
    with pytest.raises(LCQError, match='no quantized layer'):
        LCQMonitorHook().before_run(make_runner(nn.Conv2d(3, 4, 3)))


def test_float_config_has_no_monitor(tiny_config):
    cfg = apply_lcq(tiny_config)
    cfg.default_hooks.lcq_monitor = dict(type='LCQMonitorHook')
    assert 'lcq_monitor' not in float_config(cfg).default_hooks
    assert 'checkpoint' in float_config(cfg).default_hooks


def test_hook_is_in_the_root_registry():
    assert HOOKS.get('LCQMonitorHook') is LCQMonitorHook
    assert HOOKS.build(dict(type='mmengine.LCQMonitorHook')).interval == 50
