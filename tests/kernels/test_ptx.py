"""Cost of the Triton kernels on a Hopper GPU, read off the machine code that Triton makes for it on any machine."""
import re
from collections import Counter

import pytest
from torch.torch_version import TorchVersion

triton = pytest.importorskip('triton')
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from timm_paf.kernels import gpu, gpu_norm  # noqa: E402

pytestmark = pytest.mark.skipif(TorchVersion(triton.__version__) < '3.3', reason='its compiler takes other arguments')

SPECIAL = ('ex2', 'rcp', 'rsqrt', 'sqrt', 'lg2', 'sin', 'cos', 'tanh', 'div')
# operations and special functions per element for which memory is the limit, with room to spare
BUDGETS = {
    ('value', 'bf16'): (19, 4.8), ('gradient', 'bf16'): (28, 6), ('value', 'fp32'): (38, 9.7),
    ('gradient', 'fp32'): (50, 9.7)}


def machine_code(kernel, dtype, constants, per_thread, unaligned=()):
    """Number of each PTX instruction of a kernel, arithmetic and special functions per element, and the accesses."""
    elements = dict.fromkeys(('x_ptr', 'y_ptr', 'g_ptr', 'dx_ptr', 'shortcut_ptr', 'dshortcut_ptr'), f'*{dtype}')
    sizes = {**dict.fromkeys(('count', 'channels', 'inner', 'rows', 'cols'), 'i32'), 'eps': 'fp32', 'eps2': 'fp32'}
    signature = {
        name: elements.get(name) or sizes.get(name) or ('*fp32' if name.endswith('_ptr') else 'constexpr')
        for name in kernel.arg_names}
    # as at run time for tensors of torch and sizes that are multiples of 16
    aligned = {
        (i,): [['tt.divisibility', 16]] for i, (name, of) in enumerate(signature.items())
        if of not in ('constexpr', 'fp32') and name not in unaligned}
    compiled = triton.compile(
        ASTSource(
            fn=kernel, signature=signature, attrs=aligned,
            constexprs={name: constants[name] for name, of in signature.items() if of == 'constexpr'}),
        target=GPUTarget('cuda', 90, 32), options={'num_warps': gpu._WARPS})
    found = Counter(
        re.findall(r'^\s+(?:@!?%p\d+ )?([a-z][a-z0-9]*(?:\.[a-z0-9_]+)*)', compiled.asm['ptx'], re.M))
    assert not [op for op in found if re.match(r'(div|rem)\.[su]64', op)]
    arithmetic = sum(n for op, n in found.items() if not op.startswith(('ld.', 'st.', 'mov', 'bra', 'ret', 'bar')))
    special = sum(n for op, n in found.items() if op.startswith(SPECIAL))
    accesses = Counter({op: n for op, n in found.items() if op.startswith(('ld.global', 'st.global'))})
    return arithmetic / per_thread, special / per_thread, accesses


@pytest.mark.parametrize('kind, dtype', list(BUDGETS), ids=str)
@pytest.mark.parametrize('name', sorted(gpu.NAMES))
def test_memory_is_the_limit(name, kind, dtype):
    per_thread = gpu._BLOCK / (32 * gpu._WARPS)
    kernel = gpu._value_kernel if kind == 'value' else gpu._gradient_kernel
    constants = {'ACT': gpu._CODES[name], 'SUMS': False, 'PER_CHANNEL': False, 'WIDE': False, 'BLOCK': gpu._BLOCK}
    arithmetic, special, accesses = machine_code(kernel, dtype, constants, per_thread)
    operations, specials = BUDGETS[kind, dtype]
    assert 1 < arithmetic <= operations and special <= specials
    # alpha and beta are single numbers, once per program; every access to elements is one of 16 bytes
    assert accesses.pop('ld.global.b32') <= 2
    tensors = 2 if kind == 'value' else 3
    assert set(accesses) == {'ld.global.v4.b32', 'st.global.v4.b32'}
    assert accesses.total() == tensors * per_thread * (2 if dtype == 'bf16' else 4) / 16


@pytest.mark.parametrize('kind, dtype', list(BUDGETS), ids=str)
@pytest.mark.parametrize('name', sorted(gpu_norm._NAMES))
def test_batch_norm_adds_few_operations(name, kind, dtype):
    """One tile of channels_last, with a shortcut: with it, memory moves half as much again."""
    rows, cols = 64, 64
    per_thread = rows * cols / (32 * gpu._WARPS)
    kernel = gpu_norm._value_kernel if kind == 'value' else gpu_norm._gradient_kernel
    constants = {
        'ACT': gpu_norm._NAMES[name], 'SHORTCUT': 1, 'BATCH': False, 'SUMS': False, 'LAST': True, 'EVEN': True,
        'WIDE': False, 'ROWS': rows, 'COLS': cols}
    arithmetic, special, accesses = machine_code(
        kernel, dtype, constants, per_thread, unaligned=('alpha_ptr', 'beta_ptr'))
    operations, specials = BUDGETS[kind, dtype]
    assert 1 < arithmetic <= operations + 8 and special <= specials
    # four numbers per channel, eight channels per thread
    tensors, elements = 3 if kind == 'value' else 5, per_thread * (2 if dtype == 'bf16' else 4) / 16
    assert accesses.pop('ld.global.b32', 0) <= 2 and set(accesses) == {'ld.global.v4.b32', 'st.global.v4.b32'}
    assert accesses['st.global.v4.b32'] == elements * (1 if kind == 'value' else 2)
    assert accesses.total() <= tensors * elements + 4 * 2


def compiles(kernel, signature, **constants):
    signature = {name: signature.get(name, 'constexpr') for name in kernel.arg_names}
    return triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants), target=GPUTarget('cuda', 90, 32)).asm['ptx']


@pytest.mark.parametrize('wide, size', [(False, 'i32'), (True, 'i64')], ids=['32 bits', '64 bits'])
def test_sums_and_channels_compile(wide, size):
    pointers = {
        **dict.fromkeys(('x_ptr', 'y_ptr', 'g_ptr', 'dx_ptr'), '*fp16'),
        **dict.fromkeys(('alpha_ptr', 'beta_ptr', 'parts_ptr'), '*fp32')}
    sizes = dict.fromkeys(('count', 'channels', 'inner'), size)
    options = {'ACT': gpu._CODES['pssilu'], 'PER_CHANNEL': True, 'WIDE': wide, 'BLOCK': gpu._BLOCK}
    assert 'ex2' in compiles(gpu._value_kernel, {**pointers, **sizes}, **options)
    assert 'ex2' in compiles(gpu._gradient_kernel, {**pointers, **sizes}, SUMS=True, **options)
    assert 'add.f64' in compiles(gpu._sum_kernel, {**pointers, 'blocks': 'i32', 'channels': 'i32'}, BLOCK=1024)
