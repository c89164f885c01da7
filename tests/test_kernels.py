"""The kernels against the reference, every gradient under its label.

Where there is no GPU, Triton's interpreter runs the CUDA kernel on the CPU.
That shows what it computes, not that it is fast.
"""
import runpy
import subprocess
import sys

import pytest
import torch

from lcq_mmdet import LCQError, kernels
from lcq_mmdet.functional import (KERNELS, dispatch, lcq_quantize,
                                  lcq_quantize_reference, levels, reference)
from lcq_mmdet.kernels.cells import make_tables
from lcq_mmdet.kernels.cpu import lcq_quantize_cpu
from lcq_mmdet.kernels.cpu_tables import make_tables as make_cpu_tables

QUANTIZERS = [(bits, signed) for bits in (2, 3, 4, 8)
              for signed in (True, False)]
HAS_GPU = torch.cuda.is_available()
COMPILE_FOR_HOPPER = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lcq_mmdet.kernels.cuda_loops import backward, forward

CONSTANTS = dict(K=16, S=15, SIGNED=False, COLUMNS=16, TILE=512)
for dtype in ('fp32', 'bf16'):
    pointers = dict.fromkeys(('x_ptr', 'y_ptr', 'dy_ptr', 'dx_ptr', 'outputs'),
                             '*' + dtype)
    kinds = dict(pointers, size='i32', tiles='i32')
    for kernel in forward, backward:
        names = kernel.arg_names
        source = ASTSource(
            kernel,
            {name: 'constexpr' if name in CONSTANTS else
             kinds.get(name, '*fp32') for name in names},
            {name: CONSTANTS[name] for name in names if name in CONSTANTS},
            {(names.index(name),): [['tt.divisibility', 16]]
             for name in names if name.endswith('_ptr') or name == 'size'})
        code = triton.compile(source, target=GPUTarget('cuda', 90, 32),
                              options=dict(enable_fp_fusion=False)).asm
        assert len(code['cubin']) and not re.search(
            r'\\b(STL|RED|ATOM[SG]?)\\b', code['sass'])
"""


# The last program of more than 2**31 elements, in place. All before is never
# touched and takes no memory; where 32 bits wrap there is none.
LAST_PROGRAM = """
import torch
from triton import language as tl
from triton.runtime import interpreter
from lcq_mmdet.functional import lcq_quantize_reference
from lcq_mmdet.kernels import cuda
from lcq_mmdet.kernels.cells import make_tables

SIZE, TILE = 2**31 + 1024, 512
scalars = torch.tensor(1.7), torch.randn(16), torch.tensor(-0.4)
clip, theta, offset = (scalar.requires_grad_() for scalar in scalars)
intervals, levels = cuda._pack(make_tables(theta, 4, False))
values = torch.empty(SIZE, dtype=torch.bfloat16)
constants = dict(K=16, S=15, SIGNED=False, TILE=TILE)
# It would copy each whole tensor onto itself.
interpreter.GridExecutor._restore_args_dev = lambda *arguments: None
x = torch.randn(2 * TILE).bfloat16().float().requires_grad_()
y = lcq_quantize_reference(x, clip, theta, 4, False, offset)
y.backward(x.detach())


def be_program(number):
    interpreter.interpreter_builder.create_get_program_id = lambda axis: (
        interpreter.TensorHandle(
            interpreter.np.array([number], 'int32'), tl.int32))


with torch.no_grad():
    values[-2 * TILE:] = x
    be_program(SIZE // TILE - 1)
    cuda.forward[(1, )](values, values, clip, offset, intervals,
                         (offset + clip * levels[0]).bfloat16(), SIZE,
                         **constants)
    assert torch.equal(values[-TILE:], y[-TILE:].bfloat16())
    values[-2 * TILE:] = x
    sums = torch.empty(SIZE // TILE // 2, 18)
    be_program(len(sums) - 1)
    cuda.backward[(1, )](values, values, values, sums, clip, offset,
                          intervals, levels, SIZE, 2, COLUMNS=16, **constants)
    assert torch.equal(values[-2 * TILE:], x.grad.bfloat16())
    torch.testing.assert_close(
        sums[-1, -1], offset.grad, rtol=1e-4, atol=1e-3)
"""


@pytest.fixture
def triton_kernel(monkeypatch):
    """The module of the CUDA kernel, which the dispatcher takes.

    Tensors made in the test are on the GPU, if there is one.
    """
    pytest.importorskip('triton')
    from lcq_mmdet.kernels import cuda
    device = 'cuda' if HAS_GPU else 'cpu'
    monkeypatch.setitem(KERNELS, device, cuda.lcq_quantize_cuda)
    with torch.device(device):
        yield cuda


@pytest.fixture(params=[
    pytest.param(False, id='cpu'),
    pytest.param(True, id='triton' if HAS_GPU else 'triton_interpreter')
])
def kernel(request):
    """The dispatcher, with either kernel behind it."""
    if request.param:
        request.getfixturevalue('triton_kernel')
    return lcq_quantize


def run(function, x, clip, theta, dy, bits, signed, offset=None,
        normalized=False):
    x, clip, theta, offset = (
        None if t is None else t.detach().clone().requires_grad_()
        for t in (x, clip, theta, offset))
    y = function(x, clip, theta, bits, signed, offset, normalized)
    y.backward(dy.to(y.dtype))
    grads = dict(y=y.detach(), x=x.grad, clip=clip.grad, theta=theta.grad)
    return grads if offset is None else dict(grads, offset=offset.grad)


def assert_same(kernel, x, clip, theta, bits, signed, dy=None, offset=None):
    """Values and dx bit by bit; sums within float32 of the exact ones."""
    dy = torch.randn(x.shape) if dy is None else dy
    ours = run(kernel, x, clip, theta, dy, bits, signed, offset)
    same = run(lcq_quantize_reference, x, clip, theta, dy, bits, signed,
               offset)
    for label in ('y', 'x'):
        assert torch.equal(ours[label].nan_to_num(),
                           same[label].nan_to_num()), label
        assert torch.equal(ours[label].isnan(), same[label].isnan()), label
    size = dy[x.isfinite()].abs().sum().item() * clip.item()
    for label in ours.keys() - {'y', 'x'}:
        error = (ours[label] - same[label]).abs().max().item()
        assert error <= 2e-5 * (1 + size), (label, error)


@pytest.mark.parametrize('bits, signed', QUANTIZERS)
@pytest.mark.parametrize('size', [1, 7, 1023, 4099, 70001])
def test_kernel_equals_reference(kernel, size, bits, signed):
    assert_same(
        kernel, torch.randn(size), torch.tensor(1.7),
        torch.randn(16) * 0.5, bits, signed)


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('offset', [-1.3, 0.4])
def test_kernel_equals_reference_with_an_offset(kernel, offset, bits):
    x = torch.cat([torch.randn(4096), torch.tensor([offset, float('nan')])])
    assert_same(
        kernel, x, torch.tensor(2.3), torch.randn(16) * 0.5, bits, False,
        offset=torch.tensor(offset))


def test_signed_quantizer_has_no_offset(kernel):
    with pytest.raises(LCQError, match='signed=True: '):
        kernel(torch.randn(5), torch.tensor(1.), torch.zeros(16), 4, True,
               torch.tensor(-1.))


@pytest.mark.parametrize('bits, signed', QUANTIZERS)
@pytest.mark.parametrize('num_intervals', [2, 7, 16, 33])
def test_values_on_knots_thresholds_levels_and_clip(kernel, num_intervals,
                                                    bits, signed):
    clip, theta = torch.tensor(1.5), torch.randn(num_intervals)
    values = clip * torch.cat([
        torch.arange(num_intervals + 1) / num_intervals,
        levels(theta, bits, signed),
        torch.tensor([1., 1 + 2e-7, 1e-45, 2., 1e30])
    ])
    x = torch.cat([values, -values, values.nextafter(torch.tensor(9.))])
    ours = kernel(x, clip, theta, bits, signed)
    same = lcq_quantize_reference(x, clip, theta, bits, signed)
    assert torch.equal(ours, same)


def test_thresholds_within_rounding_errors_of_a_knot():
    """There a code may fall, and the CPU kernel looks codes up."""
    clip, falls = torch.tensor(1.7), 0
    x = clip / 2 + torch.arange(-64, 65) * 2.**-24
    for seed in range(120):
        half = torch.randn(8, generator=torch.Generator().manual_seed(seed))
        theta = torch.cat([half, half.flip(0)])
        assert torch.equal(
            lcq_quantize_cpu(x, clip, theta, 4, False),
            lcq_quantize_reference(x, clip, theta, 4, False))
        tables = make_cpu_tables(
            theta.softmax(0).numpy(), 15, clip.numpy()[()])
        falls += not len(tables.thresholds)
    assert 0 < falls < 120


@pytest.mark.parametrize('bits', [2, 4, 6])
def test_values_beside_thresholds(kernel, bits):
    clip, theta = torch.tensor(1.7), torch.randn(16)
    heights = theta.cpu().softmax(0).numpy()
    found = make_cpu_tables(heights, 2**bits - 1, clip.cpu().numpy()[()])
    at = torch.from_numpy(found.thresholds).to(clip.device)
    at = at[at.isfinite()]
    assert len(at) == 2**bits - 1
    for x in (at, at.nextafter(at - 1), at.nextafter(at + 1)):
        assert_same(kernel, x, clip, theta, bits, False)
    below = kernel(at.nextafter(at - 1), clip, theta, bits, False)
    assert (below < kernel(at, clip, theta, bits, False)).all()


@pytest.mark.parametrize('signed', [True, False])
def test_subnormal_values(kernel, signed):
    clip = torch.tensor(2.**-126)
    x = torch.randn(1023) * clip
    assert (x.abs() < clip).any()
    assert_same(kernel, x, clip, torch.randn(16), 4, signed)


@pytest.mark.parametrize('offset', [None, -1.4])
@pytest.mark.parametrize('x', [
    torch.randn(4099, generator=torch.Generator().manual_seed(0)) * 0.02,
    torch.arange(1023.) + 1e4,
    torch.full((7, ), 0.3),
], ids=['centered', 'shifted', 'constant'])
def test_in_units_of_the_deviation(kernel, x, offset):
    x = x.to('cuda' if HAS_GPU else 'cpu')
    offset = None if offset is None else torch.tensor(offset)
    arguments = (x, torch.tensor(2.7), torch.randn(16) * 0.5,
                 torch.randn(x.shape), 4, offset is None, offset, True)
    ours = run(kernel, *arguments)
    same = run(lcq_quantize_reference, *arguments)
    for label, value in same.items():
        torch.testing.assert_close(
            ours[label], value, rtol=1e-4, atol=2e-4, msg=label)


@pytest.mark.parametrize('signed', [True, False])
def test_nan_and_infinity(kernel, signed):
    x = torch.tensor([float('nan'), float('inf'), float('-inf'), 0., -0., 1.])
    assert_same(kernel, x, torch.tensor(2.), torch.randn(16), 4, signed)


@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('clip', [-1., 0., float('nan')])
def test_clip_that_is_not_positive(kernel, clip, signed):
    x = torch.randn(1023)
    arguments = (x, torch.tensor(clip), torch.randn(16), torch.ones(1023), 4,
                 signed)
    ours = run(kernel, *arguments)
    assert not ours['x'].any()
    assert not (ours['y'].abs() > abs(clip)).any()


def test_theta_that_is_not_a_number(kernel):
    theta = torch.full((16, ), float('nan'))
    y = run(kernel, torch.randn(1023), torch.tensor(9.), theta,
            torch.ones(1023), 4, True)['y']
    assert y.isnan().all()


@pytest.mark.parametrize('view', [
    lambda x: x.to(memory_format=torch.channels_last),
    lambda x: x.transpose(1, 3),
    lambda x: x[:, ::2],
    lambda x: x[:1].expand(3, -1, -1, -1),
], ids=['channels_last', 'transposed', 'strided', 'expanded'])
@pytest.mark.parametrize('view_of_dy', [lambda g: g, lambda g: g.flip(0)])
def test_memory_formats(kernel, view, view_of_dy):
    x = view(torch.randn(2, 6, 5, 4))
    dy = view_of_dy(torch.randn(x.shape))
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    clip, theta = torch.tensor(1.), torch.randn(16)
    y = kernel(x, clip, theta, 4, True)
    assert torch.equal(y, lcq_quantize_reference(x, clip, theta, 4, True))
    assert y.stride() == (x + 1).stride()
    kernel(leaf, clip, theta, 4, True).backward(dy)
    assert torch.equal(leaf.grad, torch.where(x.abs() < 1, dy, 0.))


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_half_precision_computes_in_float32(kernel, dtype):
    x = torch.randn(1000).to(dtype)
    clip, theta = torch.tensor(1.7), torch.randn(16)
    y = kernel(x, clip, theta, 4, True)
    assert y.dtype == dtype
    expected = lcq_quantize_reference(x.float(), clip, theta, 4, True)
    assert torch.equal(y, expected.to(dtype))


def test_double_precision_is_kept(kernel):
    arguments = (torch.randn(100).double(), torch.tensor(1.7).double(),
                 torch.randn(16).double(), torch.randn(100).double(), 4, True)
    ours = run(kernel, *arguments)
    for label, value in run(lcq_quantize_reference, *arguments).items():
        assert value.dtype == torch.float64
        assert torch.equal(ours[label], value), label


def test_autocast_changes_nothing(kernel):
    x = torch.randn(100).bfloat16()
    arguments = (x, torch.tensor(1.7), torch.randn(16), torch.randn(100), 4,
                 True)
    outside = run(kernel, *arguments)
    with torch.autocast(x.device.type, torch.bfloat16):
        inside = run(kernel, *arguments)
    for label, value in outside.items():
        assert torch.equal(inside[label], value), label


def test_empty_input(kernel):
    y = kernel(torch.ones(0, 3), torch.tensor(1.), torch.zeros(16), 4, True)
    assert y.shape == (0, 3)


def test_result_does_not_depend_on_the_number_of_threads():
    x, dy = torch.randn(100003), torch.randn(100003)
    arguments = (lcq_quantize_cpu, x, torch.tensor(1.), torch.randn(16), dy, 4,
                 True)
    threads = torch.get_num_threads()
    many = run(*arguments)
    try:
        torch.set_num_threads(1)
        one = run(*arguments)
    finally:
        torch.set_num_threads(threads)
    for label, value in one.items():
        assert torch.equal(value, many[label]), label


def test_gradient_checkpointing(kernel):
    x = torch.randn(100, requires_grad=True)
    clip, theta = torch.tensor(1., requires_grad=True), torch.zeros(16)
    y = torch.utils.checkpoint.checkpoint(
        kernel, x, clip, theta, 4, True, use_reentrant=False)
    y.sum().backward()
    assert clip.grad is not None and x.grad is not None


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_arguments_are_checked_once(monkeypatch, dtype):
    calls = []
    for module in (dispatch, reference):
        monkeypatch.setattr(module, 'check_arguments',
                            lambda *arguments: calls.append(arguments))
    lcq_quantize(*(torch.ones(shape, dtype=dtype) for shape in (3, (), 16)),
                 4, True)
    assert len(calls) == 1


def test_cpu_kernel_is_registered():
    assert KERNELS['cpu'] is lcq_quantize_cpu


def test_triton_kernel_cuts_long_inputs_into_tiles(triton_kernel,
                                                   monkeypatch):
    monkeypatch.setattr(triton_kernel, '_MAX_PROGRAMS', 3)
    assert_same(lcq_quantize, torch.randn(5003), torch.tensor(1.7),
                torch.randn(16), 4, True)


def test_triton_kernel_gives_the_same_sums_every_time(triton_kernel):
    arguments = (lcq_quantize, torch.randn(4099), torch.tensor(1.),
                 torch.randn(16), torch.randn(4099), 4, False)
    once, again = run(*arguments), run(*arguments)
    for label, value in once.items():
        assert torch.equal(value, again[label]), label


@pytest.mark.skipif(HAS_GPU, reason='tests/gpu has so many elements')
def test_triton_kernel_has_64_bit_addresses():
    pytest.importorskip('triton')
    subprocess.run([sys.executable, '-c', LAST_PROGRAM], check=True)


def test_triton_kernel_is_a_sound_custom_operation(triton_kernel):
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    scalars = torch.tensor(1.), torch.randn(16), torch.tensor(-0.5)
    tables = triton_kernel._pack(make_tables(scalars[1], 4, False))
    inputs = [t.requires_grad_() for t in (x, *scalars)]
    torch.library.opcheck(triton_kernel._quantize, (*inputs, *tables, False))


def test_triton_kernel_is_compiled_into_one_graph(triton_kernel):
    arguments = (torch.randn(100), torch.tensor(1.), torch.randn(16),
                 torch.randn(100), 4, True)
    compiled = torch.compile(
        lcq_quantize, backend='aot_eager', fullgraph=True)
    ours, same = run(compiled, *arguments), run(lcq_quantize, *arguments)
    for label, value in same.items():
        assert torch.equal(ours[label], value), label


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason='a CUDA graph needs a GPU')
def test_triton_kernel_replays_in_a_cuda_graph(triton_kernel):
    tensors = [torch.randn(4099), torch.tensor(1.), torch.randn(16)]
    for tensor in tensors:
        tensor.requires_grad_()
    dy = torch.randn(4099)

    def step():
        y = lcq_quantize(*tensors, 4, True)
        return (y, *torch.autograd.grad(y, tensors, dy))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    with torch.no_grad():
        tensors[0].normal_()
    graph.replay()
    for ours, same in zip(replayed, step()):
        assert torch.equal(ours, same)


def test_triton_compiles_for_hopper(monkeypatch, tmp_path):
    """Down to machine code, without spilled registers and atomics."""
    pytest.importorskip('triton')
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    subprocess.run([sys.executable, '-c', COMPILE_FOR_HOPPER], check=True)


def test_cuda_kernel_is_registered(triton_kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(kernels, 'KERNELS', {})
    kernels.use('auto')
    assert kernels.KERNELS['cuda'] is triton_kernel.lcq_quantize_cuda


def test_without_triton_the_reference_runs_after_one_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(kernels, 'KERNELS', {})
    monkeypatch.setitem(sys.modules, 'lcq_mmdet.kernels.cuda', None)
    kernels.use('auto')
    arguments = torch.randn(9), torch.tensor(1.), torch.zeros(16), 4, True
    with pytest.warns(UserWarning, match='Triton'):
        y = kernels.KERNELS['cuda'](*arguments)
    assert torch.equal(y, lcq_quantize_reference(*arguments))
    assert kernels.KERNELS['cuda'] is lcq_quantize_reference


@pytest.mark.parametrize('choice, expected', [('reference', '{}'),
                                              ('fast', 'LCQ_KERNELS')])
def test_environment_chooses(choice, expected, monkeypatch):
    monkeypatch.setenv('LCQ_KERNELS', choice)
    code = 'import lcq_mmdet.kernels as k; print(k.KERNELS)'
    result = subprocess.run([sys.executable, '-c', code],
                            capture_output=True,
                            text=True)
    assert expected in result.stdout + result.stderr


@pytest.mark.parametrize('choice, devices', [('numba', {'cpu'}),
                                             ('triton', {'cuda'}),
                                             ('reference', set())])
def test_kernels_are_chosen_by_hand(choice, devices, monkeypatch):
    if choice == 'triton':
        pytest.importorskip('triton')
    monkeypatch.setattr(kernels, 'KERNELS', {'cpu': None})
    kernels.use(choice)
    assert kernels.KERNELS.keys() == devices


@pytest.mark.parametrize('choice, module', [('numba', 'cpu'),
                                            ('triton', 'cuda')])
def test_chosen_kernel_that_is_not_installed_is_named(choice, module,
                                                      monkeypatch):
    monkeypatch.setattr(kernels, 'KERNELS', {})
    monkeypatch.setitem(sys.modules, f'lcq_mmdet.kernels.{module}', None)
    with pytest.raises(LCQError, match=f"'pip install {choice}'"):
        kernels.use(choice)


WRONG_ARGUMENTS = {
    'integer': (dict(x=torch.arange(5)), 'x: torch.int64, '),
    'complex': (dict(x=torch.ones(5, dtype=torch.cfloat)), 'x: torch.complex'),
    'integer_clip': (dict(clip=torch.tensor(1)), 'clip: torch.int64, '),
    'clip': (dict(clip=torch.ones(1)), r'clip: shape \(1,\), must be \(\)'),
    'theta': (dict(theta=torch.ones(2, 8)), r'theta: shape \(2, 8\), '),
    'no_theta': (dict(theta=torch.ones(0)), r'theta: shape \(0,\), must be'),
    'offset': (dict(signed=False, offset=torch.ones(5)), 'offset: shape '),
    'device': (dict(theta=torch.ones(16, device='meta')), 'theta: on meta '),
    'bits': (dict(bits=1), 'bits=1: '),
}


@pytest.mark.parametrize('changed, message', WRONG_ARGUMENTS.values(),
                         ids=WRONG_ARGUMENTS)
@pytest.mark.parametrize('function', [lcq_quantize, lcq_quantize_reference])
def test_wrong_argument_is_named(function, changed, message):
    arguments = dict(x=torch.randn(5), clip=torch.tensor(1.),
                     theta=torch.zeros(16), bits=4, signed=True)
    with pytest.raises(LCQError, match=message):
        function(**{**arguments, **changed})


SOURCE = """
from lcq_mmdet.kernels.compiling import kept

@kept(error_model='numpy')
def half(x):
    return x / 2
"""


@pytest.mark.parametrize('home', ['user', 'nowhere'])
def test_compiled_code_of_a_read_only_package(home, tmp_path, monkeypatch,
                                              recwarn):
    cache = tmp_path / 'cache'
    monkeypatch.setenv('XDG_CACHE_HOME', str(cache))
    if home == 'nowhere':
        cache.touch()
    package = tmp_path / 'package'
    package.mkdir()
    # A file that has its name keeps the folder from being made, of root, too.
    (package / '__pycache__').touch()
    (package / 'source.py').write_text(SOURCE)
    assert runpy.run_path(str(package / 'source.py'))['half'](3.) == 1.5
    told = [str(warning.message) for warning in recwarn
            if 'NUMBA_CACHE_DIR' in str(warning.message)]
    assert len(told) == (home == 'nowhere')
    assert any(cache.rglob('source.half*')) == (home == 'user')
