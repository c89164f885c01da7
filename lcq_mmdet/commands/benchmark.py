"""Measure kernels, steps, calibration and errors, as ratios in one run.

All that is timed takes turns in one process; a time is the median.
"""
import argparse
import os.path as osp
import tempfile
from typing import Any, Callable, Dict, List, Mapping, Sequence

import torch
from mmengine.config import Config, DictAction
from rich.progress import track
from torch import Tensor, nn
from torch._functorch import config as functorch_config

import lcq_mmdet.datasets  # noqa: F401
from lcq_mmdet import LCQQuantizer, QuantizerConfig
from lcq_mmdet.benchmark.steps import TrainingSteps
from lcq_mmdet.benchmark.timing import interleaved_medians
from lcq_mmdet.cli import check_files, read_config
from lcq_mmdet.conversion.model import apply_lcq
from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import check_bits, lcq_quantize_reference
from lcq_mmdet.quantization.config import SIGNED
from lcq_mmdet.report.records import write_record
from lcq_mmdet.report.runs import load_run
from lcq_mmdet.report.tables import ratio_table

Row = Dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    kernels = commands.add_parser(
        'kernels',
        help="ours, the reference and torch's own uniform fake quantizer")
    kernels.add_argument(
        '--size',
        type=int,
        default=2**23,
        help='number of activations (default: 8 million)')

    train = commands.add_parser(
        'train',
        help='a training step and the calibration, beside the float detector')

    inference = commands.add_parser(
        'inference',
        help='the network on the CPU: torch, onnxruntime and 8-bit integers')
    inference.add_argument(
        '--run',
        nargs=2,
        action='append',
        default=[],
        metavar=('NAME', 'WORK_DIR'),
        help='a trained quantized detector, which is evaluated, too; any '
        'number of times')
    inference.add_argument(
        '--modules',
        nargs='+',
        metavar='PATTERN',
        help='what to quantize (default: backbone and neck)')
    inference.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=[480, 640],
        metavar=('HEIGHT', 'WIDTH'),
        help='of the image (default: 480 640)')

    activations = commands.add_parser(
        'activations',
        help='squared error after SiLU and GELU: levels above an offset, and '
        'symmetric ones')

    for command in (train, inference):
        command.add_argument(
            'config',
            nargs='+' if command is train else '*',
            help='config of a float detector, or mmdet::...')
        command.add_argument(
            '--cfg-options',
            nargs='+',
            action=DictAction,
            help='override settings of the configs')

    for command in (kernels, train, inference):
        command.add_argument(
            '--bits', type=int, default=4, help='bits, 2 to 8')
        command.add_argument(
            '--rounds', type=int, default=20, help='timed calls of each')
    for command in (kernels, train, inference, activations):
        command.add_argument(
            '--out',
            help='JSON file to write, such as benchmarks/kernels.json')
    args = parser.parse_args()
    if 'bits' in args:
        check_bits(args.bits)
    return args


def native(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int,
           signed: bool) -> Tensor:
    """Quantize with torch's uniform quantizer of a learned scale."""
    low, high = (1 - 2**(bits - 1), 2**(bits - 1) - 1) if signed else (
        0, 2**bits - 1)
    return torch._fake_quantize_learnable_per_tensor_affine(
        x, scale, zero_point, low, high, 1.)


def time_directions(functions: Dict[str, Callable[[Tensor], Tensor]],
                    parameters: Mapping[str, Sequence[Tensor]], x: Tensor,
                    rounds: int) -> Dict[str, Dict[str, float]]:
    """Time forward, backward and both of functions of ``x``.

    Returns:
        Seconds by name of the function, then by direction.
    """
    x.requires_grad_()
    dy = torch.randn_like(x)
    calls: Dict[str, Callable[[], Any]] = {}
    for name, function in functions.items():
        inputs = [x, *parameters[name]]
        y = function(x)

        def forward(function=function) -> Tensor:
            return function(x)

        def backward(y=y, inputs=inputs) -> Any:
            return torch.autograd.grad(y, inputs, dy, retain_graph=True)

        def both(function=function, inputs=inputs) -> Any:
            return torch.autograd.grad(function(x), inputs, dy)

        calls[f'{name}/forward'] = forward
        calls[f'{name}/backward'] = backward
        calls[f'{name}/both'] = both
    target = torch.empty_like(x)
    calls['copy/'] = lambda: target.copy_(x.detach())
    medians = interleaved_medians(calls, rounds)
    times: Dict[str, Dict[str, float]] = {}
    for key, value in medians.items():
        name, _, direction = key.partition('/')
        times.setdefault(name, {})[direction] = value
    # A copy moves two streams; forward needs two, and backward three.
    copy = times.pop('copy')['']
    times['memory traffic at the speed of a copy'] = dict(
        forward=copy, backward=1.5 * copy, both=2.5 * copy)
    return times


def benchmark_kernels(args: argparse.Namespace) -> List[Row]:
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    # Lets the backward of what torch.compile makes run more than once.
    functorch_config.donated_buffer = False
    torch.manual_seed(0)
    side = int((args.size / 64)**0.5)
    cases = {
        f'input, {64 * side * side:,} values':
        torch.randn(1, 64, side, side, device=device).relu(),
        'weight, 512 x 512 x 3 x 3':
        torch.randn(512, 512, 3, 3, device=device) * 0.02
    }
    rows = []
    for case, x in track(cases.items(), 'kernels'):
        is_weight = case.startswith('weight')
        config = QuantizerConfig().updated(dict(bits=args.bits))
        quantizer = LCQQuantizer(config, is_weight=is_weight).to(device)
        quantizer.initialize_(x, signed=is_weight)
        clip, theta = quantizer.clip, quantizer.theta
        scale = torch.tensor([0.1], device=device, requires_grad=True)
        zero_point = torch.zeros(1, device=device, requires_grad=True)

        def reference(x: Tensor) -> Tensor:
            unit = x.std(correction=0) if is_weight else 1
            return lcq_quantize_reference(x, clip * unit, theta, args.bits,
                                          is_weight)

        functions: Dict[str, Callable[[Tensor], Tensor]] = {
            "torch's learnable fake quantizer":
            lambda x: native(x, scale, zero_point, args.bits, is_weight),
            'LCQ':
            quantizer,
            'LCQ, reference':
            reference,
            'LCQ, reference, torch.compile':
            torch.compile(reference)
        }
        parameters = {
            name: [scale] if name.startswith('torch') else [clip, theta]
            for name in functions
        }
        times = time_directions(functions, parameters, x, args.rounds)
        rows += [
            dict(case=f'{case}, {args.bits} bits', name=name, seconds=seconds)
            for name, seconds in times.items()
        ]
    return rows


def benchmark_training(args: argparse.Namespace) -> List[Row]:
    rows = []
    for path in args.config:
        cfg = read_config(path)
        cfg.merge_from_dict(args.cfg_options or {})
        check_files(cfg, ('train_dataloader', ))
        case = osp.splitext(osp.basename(path))[0]
        steps = TrainingSteps(cfg, args.bits)
        seconds = interleaved_medians(steps.calls(), args.rounds)
        memory = steps.peak_memory()
        rows += [
            dict(
                case=f'{case}, {args.bits} bits',
                name=name,
                seconds=dict(step=seconds[name]),
                peak_memory=memory[name]) for name in seconds
        ]
        # The target to compare the calibration with.
        rows.append(dict(case=f'{case}, {args.bits} bits, calibration',
                         name='ten steps of training in float',
                         seconds=dict(step=10 * seconds['float'])))
        rows += [
            dict(
                case=f'{case}, {args.bits} bits, calibration',
                name=f'calibration of all {name} quantizers on eight batches',
                seconds=dict(step=value))
            for name, value in steps.calibration.items()
        ]
    return rows


def benchmark_inference(args: argparse.Namespace) -> List[Row]:
    from lcq_mmdet.benchmark.engines import Engines
    height, width = args.size
    cases: Dict[str, Config] = {}
    for path in args.config:
        cfg = read_config(path)
        name = osp.splitext(osp.basename(path))[0]
        cfg.load_from = None
        cases[f'{name}, {args.bits} bits'] = apply_lcq(
            cfg, args.bits, modules=args.modules)
    for name, work_dir in args.run:
        cases[name] = load_run(work_dir)
        if cases[name].model.type != 'LCQModel':
            raise LCQError(f'--run={name!r}: {work_dir} holds a float '
                           'detector; name a quantized one, or its config')
    if not cases:
        raise LCQError('config: name one, or a trained detector with --run')
    for cfg in cases.values():
        cfg.merge_from_dict(args.cfg_options or {})
        if cfg.load_from:
            check_files(cfg, ('train_dataloader', 'test_dataloader'))
    rows = []
    for case, cfg in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            engines = Engines(cfg, (height, width), folder)
            seconds = interleaved_medians(engines.calls(), args.rounds)
            metrics = engines.evaluate() if cfg.load_from else {}
        for name, value in seconds.items():
            row: Row = dict(
                case=f'{case}, {height} x {width}',
                name=name,
                seconds=dict(network=value))
            if name in engines.file_bytes:
                row['file_bytes'] = engines.file_bytes[name]
            if name in metrics:
                row['metrics'] = metrics[name]
            rows.append(row)
    return rows


@torch.no_grad()
def benchmark_activations(args: argparse.Namespace) -> List[Row]:
    torch.manual_seed(0)
    x = torch.randn(2**20)
    rows = []
    for function in (nn.SiLU(), nn.GELU()):
        y = function(x)
        for bits in (4, 3, 2):
            for signed in SIGNED:
                config = QuantizerConfig().updated(
                    dict(bits=bits, signed_act=signed))
                quantizer = LCQQuantizer(config, is_weight=False)
                quantizer.initialize_(y, signed=True)
                error = (quantizer(y) - y).square().mean() / y.var()
                rows.append(
                    dict(
                        case=f'{type(function).__name__}, {bits} bits',
                        name=signed,
                        relative_error=error.item()))
    return rows


BENCHMARKS = dict(
    activations=benchmark_activations,
    kernels=benchmark_kernels,
    train=benchmark_training,
    inference=benchmark_inference)


def main() -> None:
    args = parse_args()
    rows = BENCHMARKS[args.command](args)
    print(ratio_table(rows))
    if args.out:
        write_record(args.out, rows)
        print('written:', osp.abspath(args.out))
