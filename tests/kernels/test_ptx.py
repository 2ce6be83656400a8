"""Cost of the Triton kernels on a Hopper GPU, read off the machine code that Triton makes for it on any machine."""
import re
from collections import Counter

import pytest

triton = pytest.importorskip('triton')
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from timm_paf.kernels import gpu  # noqa: E402

pytestmark = pytest.mark.skipif(triton.__version__ < '3.3', reason='its compiler takes other arguments')

SPECIAL = ('ex2', 'rcp', 'rsqrt', 'sqrt', 'lg2', 'sin', 'cos', 'tanh', 'div')
# operations and special functions per element for which memory is the limit, with room to spare
BUDGETS = {
    ('value', 'bf16'): (19, 4.8), ('gradient', 'bf16'): (28, 6), ('value', 'fp32'): (38, 9.7),
    ('gradient', 'fp32'): (50, 9.7)}


def machine_code(kind, name, dtype):
    """Number of each PTX instruction of a kernel for one value of alpha, and elements per thread."""
    pointers = ['x_ptr', 'y_ptr'] if kind == 'value' else ['g_ptr', 'x_ptr', 'dx_ptr', 'parts_ptr']
    kernel = gpu._value_kernel if kind == 'value' else gpu._gradient_kernel
    signature = {
        **dict.fromkeys(pointers, f'*{dtype}'), **dict.fromkeys(('alpha_ptr', 'beta_ptr', 'parts_ptr'), '*fp32'),
        **dict.fromkeys(('count', 'channels', 'inner'), 'i32')}
    constants = {'ACT': gpu._CODES[name], 'SUMS': False, 'PER_CHANNEL': False, 'WIDE': False, 'BLOCK': gpu._BLOCK}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {key: signature.get(key, 'constexpr') for key in kernel.arg_names}
    # as at run time for tensors of torch and sizes that are multiples of 16
    aligned = {(i,): [['tt.divisibility', 16]] for i, of in enumerate(signature.values()) if of != 'constexpr'}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget('cuda', 90, 32), options={'num_warps': gpu._WARPS})
    instructions = re.findall(r'^\s+(?:@!?%p\d+ )?([a-z][a-z0-9]*(?:\.[a-z0-9_]+)*)', compiled.asm['ptx'], re.M)
    return Counter(instructions), gpu._BLOCK / (32 * gpu._WARPS)


@pytest.mark.parametrize('kind, dtype', list(BUDGETS), ids=str)
@pytest.mark.parametrize('name', sorted(gpu.NAMES))
def test_memory_is_the_limit(name, kind, dtype):
    found, per_thread = machine_code(kind, name, dtype)
    operations, special = BUDGETS[kind, dtype]
    arithmetic = sum(n for op, n in found.items() if not op.startswith(('ld.', 'st.', 'mov', 'bra', 'ret', 'bar')))
    assert per_thread < arithmetic <= operations * per_thread
    assert sum(n for op, n in found.items() if op.startswith(SPECIAL)) <= special * per_thread
    assert not [op for op in found if re.match(r'(div|rem)\.[su]64', op)]
    # alpha and beta are single numbers, once per program; every access to elements is one of 16 bytes
    accesses = Counter({op: n for op, n in found.items() if op.startswith(('ld.global', 'st.global'))})
    assert accesses.pop('ld.global.b32') <= 2
    tensors = 2 if kind == 'value' else 3
    assert set(accesses) == {'ld.global.v4.b32', 'st.global.v4.b32'}
    assert accesses.total() == tensors * per_thread * (2 if dtype == 'bf16' else 4) / 16


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
